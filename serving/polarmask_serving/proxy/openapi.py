"""The HTTP interface as OpenAPI 3.1: `openapi.yaml`, its holes filled from the code's own tables.

`python -m polarmask_serving.proxy.openapi` prints it; docs/reference/openapi.json keeps it.
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from polarmask_serving.answer.options import MAX_IMAGES, OPTIONS, header_of
from polarmask_serving.errors import AnswerError
from polarmask_serving.proxy.refusals import REFUSALS, UNCHECKED


def answer_errors() -> list[type[AnswerError]]:
    """Return the errors a worker answers with, by status and code."""
    return sorted(_leaves(AnswerError), key=lambda each: (each.status, each.code))


def proxy_refusals() -> list[tuple[int, str, str]]:
    """Return what is refused before or after a worker: status, code and reason."""
    known_codes = {error.code for error in answer_errors()}
    known = [(status, code, message) for status, (code, message) in REFUSALS.items()]
    return sorted(each for each in (*known, UNCHECKED) if each[1] not in known_codes)


def _leaves(kind: type[AnswerError]) -> Iterator[type[AnswerError]]:
    if not kind.__subclasses__():
        yield kind
    for each in kind.__subclasses__():
        yield from _leaves(each)


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    codes = [error.code for error in answer_errors()] + [code for _, code, _ in proxy_refusals()]
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = _filled(
        yaml.safe_load(text),
        {
            "${option_parameters}": _option_parameters(),
            "${option_schemas}": {
                name: {**option.schema, "description": option.description}
                for name, option in OPTIONS.items()
            },
            "${refusals}": _refusals(),
            "${codes}": [*dict.fromkeys(codes), "not_ready"],
            "${max_images}": MAX_IMAGES,
        },
    )
    return document


def _filled(node: Any, holes: Mapping[str, Any]) -> Any:  # noqa: ANN401  # any part of a document
    """Return a part of the document; a hole in a list or an object adds all of its items."""
    if isinstance(node, dict):
        pairs = ((holes[key] if key in holes else {key: _filled(node[key], holes)}) for key in node)
        return {key: value for pair in pairs for key, value in pair.items()}
    if isinstance(node, list):
        items = (
            holes[each] if isinstance(each, str) and each in holes else [_filled(each, holes)]
            for each in node
        )
        return [item for part in items for item in part]
    return holes.get(node, node) if isinstance(node, str) else node


def _option_parameters() -> list[dict[str, Any]]:
    request_id = {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Identifies the request in the log; one is generated if it is missing.",
        "schema": {"type": "string"},
    }
    return [
        *(
            {
                "name": parameter,
                "in": place,
                "description": option.description,
                "schema": option.schema,
                # Lists as text with commas.
                **({"style": "form", "explode": False} if place == "query" else {}),
            }
            for name, option in OPTIONS.items()
            for place, parameter in (("header", header_of(name)), ("query", name))
        ),
        request_id,
    ]


def _refusals() -> dict[str, Any]:
    """Return the responses of a prediction that is not answered, by status."""
    reasons: dict[int, list[str]] = {}
    for error in answer_errors():
        reasons.setdefault(error.status, []).append(f"`{error.code}`: {inspect.getdoc(error)}")
    for status, code, message in proxy_refusals():
        reasons.setdefault(status, []).append(f"`{code}`: {message}")
    schema = {"$ref": "#/components/schemas/Refusal"}
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}. " + " ".join(lines),
            "content": {"application/json": {"schema": schema}},
        }
        for status, lines in sorted(reasons.items())
    }


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
