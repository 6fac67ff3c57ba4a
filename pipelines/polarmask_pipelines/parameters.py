"""The pipeline's parameters. Its signature and docstring are the one place that states them."""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from polarmask.system.did_you_mean import did_you_mean
from polarmask_pipelines.errors import ParameterError

_HINTS: dict[type, str] = {
    bool: ": write true or false",
    dict: ': write a JSON object, as {"gpus_per_node": 8}',
}
_PIPELINE_ROOT = re.compile(r"(minio|s3|gs)://[^/?]+(/[^?]*)?(\?.+)?")


@dataclass(frozen=True)
class Parameter:
    """One parameter of the pipeline."""

    name: str
    type: type
    """One of str, int, float, bool, dict."""
    default: Any
    text: str
    """Its line of the docstring."""


def pipeline_parameters() -> dict[str, Parameter]:
    """Return the pipeline's parameters by name, in the order of its signature."""
    from polarmask_pipelines.train_and_deploy import train_and_deploy

    inputs = train_and_deploy.component_spec.inputs
    return {
        name: Parameter(
            name,
            get_origin(each.annotation) or each.annotation,
            each.default,
            " ".join(inputs[name].description.split()),
        )
        for name, each in inspect.signature(train_and_deploy.pipeline_func).parameters.items()
    }


def read_parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` texts; a bool is true or false, a dict is a JSON object.

    Raises:
        ParameterError: There is no such parameter, or the value is of another type.
    """
    known = pipeline_parameters()
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or name not in known:
            raise ParameterError(
                f"--param {assignment!r}{did_you_mean(name, known)}: write NAME=VALUE; names: "
                f"{', '.join(known)}"
            )
        kind = known[name].type
        try:
            values[name] = _read(text, kind)
        except ValueError as error:
            expected = kind.__name__ + _HINTS.get(kind, "")
            raise ParameterError(f"--param {assignment!r}: not of type {expected}") from error
    return values


def check_parameters(values: Mapping[str, Any]) -> None:
    """Raise an error for values that preflight would refuse without a look at a cluster.

    Args:
        values: Of parameters; the others have their defaults.

    Raises:
        ConfigError, ArchiveError, PreflightError: As preflight; names the parameter.
    """
    from polarmask_components.checks.planned_run import PlannedRun
    from polarmask_components.checks.run_checks import check_settings
    from polarmask_components.parameters.job_settings import read_job_settings
    from polarmask_components.parameters.step_resources import StepResources
    from polarmask_components.parameters.training_request import TrainingRequest

    known = {name: each.default for name, each in pipeline_parameters().items()} | dict(values)
    request = TrainingRequest(
        preset=known["train_preset"],
        overrides=known["train_set"],
        on=known["train_on"],
        nodes=known["train_nodes"],
        min_nodes=known["train_min_nodes"],
        processes_per_node=known["train_processes_per_node"],
        storage=known["train_storage"],
        job=read_job_settings(known["train_job"], target=known["deploy_target"]),
    )
    check_settings(
        PlannedRun(
            training_request=request,
            registry=known["deploy_registry"],
            target=known["deploy_target"],
            model_name=known["deploy_model_name"],
            floor_ap=known["eval_floor_ap"],
            max_problems=known["data_max_problems"],
            trial=known["deploy_trial"],
            label_pods=known["label_pods"],
            resources=StepResources(
                eval_gpus=known["eval_gpus"],
                eval_memory=known["eval_memory"],
                label_device=known["label_device"],
                label_memory=known["label_memory"],
            ),
            webhook=known["notify_webhook"],
            initial=known["train_init"],
            storage_secret=known["storage_secret"],
        )
    )


def check_pipeline_root(root: str) -> None:
    """Raise ParameterError unless it is "" or an address that Kubeflow takes as a pipeline root.

    Kubeflow itself refuses another one only when the first step of the run starts.
    """
    if root and not _PIPELINE_ROOT.fullmatch(root):
        raise ParameterError(
            f"--pipeline-root {root!r}: Kubeflow would call it an unsupported Cloud bucket; write "
            "minio://, s3:// or gs://, a bucket, and a prefix if you like"
        )


def write_value(value: object) -> str:
    """Return a value as `read_parameters` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def _read(text: str, kind: type) -> Any:  # noqa: ANN401  # of the kind given
    if kind is str:
        return text
    if kind is float and not text.isascii():  # float() reads the digits of every script
        raise ValueError(text)
    value = float(text) if kind is float else json.loads(text, parse_constant=_refuse)
    finite = kind is not float or math.isfinite(value)
    if type(value) is not kind or not finite:
        raise ValueError(text)
    return value


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which are no JSON, though Python reads them."""
    raise ValueError(constant)
