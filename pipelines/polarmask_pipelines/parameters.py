"""Parameters of the pipeline as people write them: NAME=VALUE, typed by its signature."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, get_origin

from polarmask_pipelines.errors import ParameterError


def pipeline_parameters() -> dict[str, type]:
    """Return the pipeline's parameters and their types."""
    from polarmask_pipelines.train_and_deploy import train_and_deploy

    signature = inspect.signature(train_and_deploy.pipeline_func)
    annotations = {name: each.annotation for name, each in signature.parameters.items()}
    return {name: get_origin(kind) or kind for name, kind in annotations.items()}


def read_parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` texts; a bool is true or false, a dict is a JSON object.

    Raises:
        ParameterError: No such parameter, or a value of another type.
    """
    types = pipeline_parameters()
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or name not in types:
            raise ParameterError(
                f"--param {assignment!r}: write NAME=VALUE; names: {', '.join(types)}"
            )
        words, read = _READERS[types[name]]
        try:
            parameters[name] = read(text)
        except (ValueError, KeyError) as error:
            raise ParameterError(f"--param {assignment!r}: not of type {words}") from error
    return parameters


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    str: ("str", str),
    int: ("int", int),
    float: ("float", _finite),
    bool: ("bool: write true or false", {"true": True, "false": False}.__getitem__),
    dict: ('dict: write a JSON object, as {"gpus_per_node": 8}', _object),
}
