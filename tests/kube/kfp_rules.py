"""What Kubeflow Pipelines' API server refuses: unknown fields, bad packages, parameters, cron.

The tables list what clients may send; fields that only the server writes are left out.
"""

import json
import re

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

_REFERENCE = {"pipeline_id": str, "pipeline_version_id": str}
_RUNTIME = {"parameters": dict, "pipeline_root": str}
_CRON = {"start_time": str, "end_time": str, "cron": str}
_COMMON = {
    "experiment_id": str,
    "display_name": str,
    "description": str,
    "pipeline_spec": dict,
    "pipeline_version_reference": _REFERENCE,
    "runtime_config": _RUNTIME,
    "service_account": str,
}
BODIES = {
    "experiment": {"display_name": str, "description": str, "namespace": str},
    "pipeline": {"name": str, "display_name": str, "description": str, "namespace": str},
    "run": _COMMON,
    "recurring_run": {
        **_COMMON,
        "max_concurrency": "int64",
        "no_catchup": bool,
        "mode": ("ENABLE", "DISABLE"),
        "trigger": {"cron_schedule": _CRON},
    },
}
_PAGE = {"page_token", "page_size", "sort_by", "filter"}
QUERIES = {
    "experiments": {*_PAGE, "namespace"},
    "pipelines": {*_PAGE, "namespace"},
    "pipeline_versions": _PAGE,
    "runs": {*_PAGE, "namespace", "experiment_id"},
    "recurringRuns": {*_PAGE, "namespace", "experiment_id"},
    "upload_version": {"name", "display_name", "pipelineid", "description", "tags"},
}
_TYPES = {
    "NUMBER_INTEGER": lambda value: is_number(value) and float(value).is_integer(),
    "NUMBER_DOUBLE": lambda value: is_number(value),
    "STRING": lambda value: isinstance(value, str),
    "BOOLEAN": lambda value: isinstance(value, bool),
    "LIST": lambda value: isinstance(value, list),
    "STRUCT": lambda value: isinstance(value, dict),
}
# Of robfig/cron v1, seconds first: lowest, highest, names.
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_CRON_FIELDS = (
    (0, 59, ()),
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, _MONTHS),
    (0, 6, _DAYS),
)


class RefusalError(Exception):
    """A refusal with this status and message."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_body(value, fields, where):
    """Refuse fields that are unknown or of another type."""
    if not isinstance(value, dict):
        raise RefusalError(400, f"{where} is no object")
    for name, item in value.items():
        if name not in fields:
            raise RefusalError(400, f'unknown field "{name}" in {where}')
        kind = fields[name]
        if isinstance(kind, dict):
            check_body(item, kind, f"{where}.{name}")
        elif isinstance(kind, tuple):
            _expect(item in kind, where, name, item)
        elif kind == "int64":
            _expect(str(item).isdigit() and not isinstance(item, float), where, name, item)
        else:
            _expect(isinstance(item, kind), where, name, item)


def _expect(holds, where, name, value):
    if not holds:
        raise RefusalError(400, f"invalid value for {where}.{name}: {json.dumps(value)}")


class _BackendLoader(yaml.SafeLoader):
    """Reads YAML as the Go server does: more texts without quotes are numbers than for PyYAML."""


_MORE_NUMBERS = {
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
    "int": r"[-+]?0o[0-7_]+",
}
for _kind, _pattern in _MORE_NUMBERS.items():
    _BackendLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"({_pattern})$"), list("-+.0123456789")
    )
_BackendLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("[yYnN]$"), list("yYnN"))
_BackendLoader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node), 0)
)
_BackendLoader.add_constructor(
    "tag:yaml.org,2002:bool", lambda loader, node: node.value.lower() in ("y", "yes", "on", "true")
)
_BackendLoader.add_constructor(
    "tag:yaml.org,2002:timestamp", lambda loader, node: f"{node.value}T00:00:00Z"
)


def read_package(text):
    """Return a compiled pipeline as KFP reads it."""
    try:
        documents = [each for each in yaml.load_all(text, _BackendLoader) if each]
        return json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    except (yaml.YAMLError, IndexError, json_format.ParseError) as error:
        raise RefusalError(
            400, f"unknown template format: pipeline spec is invalid: {error}"
        ) from error


def check_parameters(spec, given):
    """Refuse parameters that the pipeline does not have, of another type, or missing."""
    known = spec.root.input_definitions.parameters
    for name, value in given.items():
        if name not in known:
            raise RefusalError(400, f"parameter {name} is not in the pipeline")
        kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(known[name].parameter_type)
        if not _TYPES[kind](value):
            raise RefusalError(400, f"input parameter {name} requires type {kind}, got {value!r}")
    for name, definition in known.items():
        if definition.HasField("default_value") and name not in given:
            value = json_format.MessageToDict(definition.default_value)
            kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(definition.parameter_type)
            if not _TYPES[kind](value):
                raise RefusalError(
                    400, f"input parameter {name} requires type {kind}, got {value!r}"
                )
        has_value = name in given or definition.HasField("default_value") or definition.is_optional
        if not has_value:
            raise RefusalError(400, f"input parameter {name} requires a value")


def check_recurring_run(body):
    if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
        raise RefusalError(
            400, "The max concurrency of the recurring run is out of range. Support 1-10"
        )
    try:
        check_cron(body["trigger"]["cron_schedule"]["cron"])
    except (KeyError, ValueError) as error:
        raise RefusalError(
            400, f"Schedule cron is not a supported format. Error: {error}"
        ) from error


def check_cron(text):
    """Raise ValueError unless robfig/cron v1 reads it: with five fields, the weekday is missing."""
    fields = text.split()
    if len(fields) != 6:
        # The real server accepts five fields, too, as second, minute, hour, day and month.
        raise ValueError(f"Expected 6 fields, found {len(fields)}: {text}")
    for field, (low, high, names) in zip(fields, _CRON_FIELDS, strict=True):
        for part in field.split(","):
            span, _, step = part.partition("/")
            if step and int(step) < 1:
                raise ValueError(f"Step of range should be a positive number: {part}")
            if span in ("*", "?"):
                continue
            ends = [
                names.index(end.upper()) + low if end.upper() in names else int(end)
                for end in span.split("-")
            ]
            if len(ends) > 2 or not low <= ends[0] <= ends[-1] <= high:
                raise ValueError(f"{part} is out of range [{low}, {high}]")
