"""The compiled pipeline: one file, named by its content."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from kfp import compiler

from polarmask_components.checks.image_reference import problem_of_image
from polarmask_components.images import OPS_IMAGE, TRAINER_IMAGE
from polarmask_pipelines.errors import ParameterError
from polarmask_pipelines.train_and_deploy import train_and_deploy

_VERSION_DIGITS = 12
_NOT_PLAIN = re.compile(r"[-+.~0-9].*|y|n|yes|no|on|off|true|false|null", re.IGNORECASE)
"""Texts that some version of YAML reads as a number, a date, a bool or nothing: the server's reads
1234e56 as a number, and PyYAML as a text."""


@dataclass(frozen=True)
class Package:
    """A pipeline as Kubeflow reads it."""

    name: str
    text: str
    """YAML."""

    @property
    def version(self) -> str:
        """Hash of the content, so that equal pipelines are one version."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:_VERSION_DIGITS]


def compile_package(defaults: Mapping[str, Any]) -> Package:
    """Compile the pipeline.

    Args:
        defaults: Defaults of its parameters, where they differ from those of the signature.

    Raises:
        ParameterError: An image of the steps has no valid name, or does not name one version.
    """
    images = {"POLARMASK_TRAINER_IMAGE": TRAINER_IMAGE, "POLARMASK_OPS_IMAGE": OPS_IMAGE}
    for variable, image in images.items():
        problem = problem_of_image(image)
        if problem:
            raise ParameterError(f"{variable}: {problem}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(train_and_deploy, str(path), pipeline_parameters=dict(defaults))
        return Package(train_and_deploy.name, _with_quotes(path.read_text(encoding="utf-8")))


def _with_quotes(text: str) -> str:
    """Return the YAML with quotes around each text that could be read as something else."""
    comments = re.match(r"(#.*\n)*", text)
    documents = yaml.dump_all(yaml.safe_load_all(text), Dumper=_Quoting, sort_keys=True)
    return (comments[0] if comments else "") + documents


class _Quoting(yaml.SafeDumper):
    """Writes texts so that every version of YAML reads texts."""


def _text(dumper: _Quoting, value: str) -> yaml.ScalarNode:
    style = "'" if _NOT_PLAIN.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Quoting.add_representer(str, _text)
