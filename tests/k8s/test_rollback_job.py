"""The Job of the how-to that rolls a cluster back: a restricted pod with a command that exists."""

import re
from pathlib import Path

import pytest
import yaml

from kube.pod_security import violations
from polarmask_components.commands.models import build_parser

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pod():
    text = (ROOT / "docs" / "how-to" / "manage-models.md").read_text()
    (document,) = re.findall(r"<<END\n(.*?)^END", text, re.MULTILINE | re.DOTALL)
    return yaml.safe_load(document)["spec"]["template"]


def test_it_runs_as_the_steps_do(pod):
    base = ROOT / "k8s" / "base" / "pipeline"
    account = yaml.safe_load((base / "service-account.yaml").read_text())
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    policy = yaml.safe_load((base / "network-policy.yaml").read_text())
    assert pod["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"]


def test_it_may_run_in_a_restricted_namespace(pod):
    assert violations(pod["spec"]) == []


def test_its_command_can_be_parsed(pod):
    (container,) = pod["spec"]["containers"]
    assert container["command"][:2] == ["polarmask", "models"]
    options = build_parser().parse_args(container["command"][2:])
    assert (options.registry, options.version) == ("s3://polarmask/registry", None)
    assert options.target == "kubernetes://polarmask/polarmask"
