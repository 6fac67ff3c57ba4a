"""The blocks of the how-to that people paste, run against the tests' API servers.

kubectl and the pipeline's commands are real; `make`, `kind` and what comes from the network are
noted only.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kube.kfp_server import KfpServer
from kube.server import KubeServer

ROOT = Path(__file__).parents[2]
HOW_TO = (ROOT / "docs" / "how-to" / "run-on-a-cluster.md").read_text()
NOTED = """#!/bin/sh
echo "$(basename "$0") $*" >> "$NOTES"
case "$(basename "$0") $*" in
  kubectl*github.com*|kubectl*crd/applications*) ;;
  kubectl*deployment/ml-pipeline*|kubectl*port-forward*) ;;
  kubectl*" create "*) # its own request is no JSON, which is all that the tests' server reads
    "$KUBECTL" "$@" --dry-run=client -o yaml | "$KUBECTL" apply -f - ;;
  kubectl*) exec "$KUBECTL" "$@" ;;
  git*) echo https://git.example/team/cells.git ;;
esac
"""


def block_of(title):
    """Return the one block of a section."""
    section = HOW_TO[HOW_TO.index(f"## {title}") :].split("\n## ")[0]
    (block,) = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return block


@pytest.fixture
def servers():
    with KubeServer(namespace="polarmask") as cluster, KfpServer() as kubeflow:
        for name in ("kubeflow", "team"):
            cluster.create("Namespace", {"metadata": {"name": name}})
        yield cluster, kubeflow


@pytest.fixture
def paste(servers, tmp_path):
    """Return a function that runs a block, and returns the commands in their order."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    cluster, kubeflow = servers
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("kubectl", "kind", "make", "git", "sleep"):
        (folder / name).write_text(NOTED)
        (folder / name).chmod(0o755)
    (tmp_path / "read-write.env").write_text("AWS_ACCESS_KEY_ID=a\n")
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    notes = tmp_path / "notes"
    environment = {
        **os.environ,
        "KUBECONFIG": str(cluster.write_kubeconfig(tmp_path / "kubeconfig")),
        "KUBECTL": kubectl,
        "NOTES": str(notes),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }

    def run(block):
        block = block.replace(".venv/bin/python", shlex.quote(sys.executable)).replace(
            " --wait", ""
        )
        block = block.replace("http://127.0.0.1:8888", kubeflow.url)
        done = subprocess.run(
            ["bash", "-e", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return notes.read_text().splitlines()

    return run


def test_the_block_for_kind_works_when_pasted(servers, paste):
    cluster, kubeflow = servers
    commands = paste(block_of("Try it on kind"))
    order = ("kind create", "kubectl apply -k github", "make images", "kind load", "apply -k k8s")
    first = [next(n for n, line in enumerate(commands) if text in line) for text in order]
    assert first == sorted(first)
    loaded = {line.split()[-1] for line in commands if line.startswith("kind load")}
    templates = [each["spec"]["template"]["spec"] for each in cluster.list("Deployment")]
    used = {each["image"] for spec in templates for each in spec["containers"]}
    assert {image for image in used if image.startswith("polarmask")} <= loaded

    secrets = [cluster.get("Secret", "polarmask-s3", where) for where in ("polarmask", "kubeflow")]
    assert secrets[0]["data"] == secrets[1]["data"]
    (run,) = kubeflow.runs.values()
    parameters = run["runtime_config"]["parameters"]
    assert parameters["data_repository"].endswith("cells.git")
    assert "namespace" not in parameters["train_job"]


def test_the_block_for_a_profile_works_when_pasted(servers, paste):
    cluster, _ = servers
    commands = paste(block_of("Where your Kubeflow runs its steps"))
    assert len(commands) == 4
    bound = {each["roleRef"]["name"] for each in cluster.list("RoleBinding", namespace="polarmask")}
    assert bound == {"polarmask-pipeline", "polarmask-trial"}
    labels = cluster.get("Namespace", "team")["metadata"]["labels"]
    assert labels["polarmask.io/asks"] == "true"
    assert cluster.get("Secret", "polarmask-s3", "team")["data"]
