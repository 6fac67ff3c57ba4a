"""The HTTP interface as OpenAPI 3.1, made from the tables that the code itself uses.

`python -m polarmask_serving.proxy.openapi` prints it; docs/reference/openapi.json keeps it.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from polarmask_serving.answer.options import MAX_IMAGES, OPTIONS, header_of
from polarmask_serving.errors import AnswerError
from polarmask_serving.proxy.refusals import REFUSALS, SCRIPT_REFUSALS

_MODEL = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"}
_PIXELS = {"type": "number"}
_POINT = {"type": "array", "items": _PIXELS, "minItems": 2, "maxItems": 2}
_POLYGON = {"type": "array", "items": _POINT, "minItems": 3}


def answer_errors() -> list[type[AnswerError]]:
    """Return the errors a worker answers with, by status and code."""
    return sorted(_leaves(AnswerError), key=lambda each: (each.status, each.code))


def proxy_refusals() -> list[tuple[int, str, str]]:
    """Return what is refused before or after a worker: status, code and reason."""
    known_codes = {error.code for error in answer_errors()}
    known = [(status, code, message) for status, (code, message) in REFUSALS.items()]
    return sorted(each for each in (*known, *SCRIPT_REFUSALS) if each[1] not in known_codes)


def _leaves(kind: type[AnswerError]) -> Iterator[type[AnswerError]]:
    if not kind.__subclasses__():
        yield kind
    for each in kind.__subclasses__():
        yield from _leaves(each)


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    predict = {
        "/predictions/{model}": [_path_parameter("model")],
        "/predictions/{model}/{version}": [_path_parameter("model"), _path_parameter("version")],
    }
    paths: dict[str, Any] = {
        path: {"post": _predict(path, parameters)} for path, parameters in predict.items()
    }
    paths["/v1/models/{model}:predict"] = {"post": _kserve()}
    paths["/healthz"] = {"get": _health()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PolarMask serving",
            "version": "1",
            "description": inspect.cleandoc(
                """
                Instances in images. All geometry is in pixels of the image as it is to be looked
                at, that is, after its EXIF orientation: x points right, y points down, and the
                pixel in row i, column j covers [j, j + 1) x [i, i + 1).

                Options travel in headers, the query, form fields or JSON. The query, like
                /healthz, is the proxy's: TorchServe alone drops it.
                """
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": {"token": _TOKEN}},
        "security": [{}, {"token": []}],
    }


_TOKEN = {"type": "http", "scheme": "bearer", "description": "Only where tokens are set up."}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _MODEL}


def _option_parameters() -> list[dict[str, Any]]:
    request_id = {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Stands in the log's line about this request; made up if it is missing.",
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


def _predict(path: str, parameters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    binary: dict[str, Any] = {}
    form = {
        "type": "object",
        "properties": {"image": {"type": "string", "format": "binary"}, **_option_schemas()},
        "required": ["image"],
        "additionalProperties": False,
    }
    content = {kind: {"schema": binary} for kind in ("image/jpeg", "image/png")}
    return {
        "operationId": "predict_version" if "version" in path else "predict",
        "summary": "Find the instances of one image; or of several, as KServe v1 asks.",
        "parameters": [*parameters, *_option_parameters()],
        "requestBody": {
            "required": True,
            "content": {
                **content,
                "multipart/form-data": {"schema": form},
                "application/json": {"schema": {"oneOf": [_ref("OneImage"), _ref("Images")]}},
            },
        },
        "responses": _responses({"oneOf": [_ref("Answer"), _ref("Answers")]}),
    }


def _kserve() -> dict[str, Any]:
    return {
        "operationId": "predict_kserve_v1",
        "summary": "Find the instances of several images, as KServe v1 asks.",
        "parameters": [_path_parameter("model"), *_option_parameters()],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("Images")}},
        },
        "responses": _responses(_ref("Answers")),
    }


def _health() -> dict[str, Any]:
    ready = _object({"status": {"const": "ready"}, "version": {"type": "string"}})
    refusal = {"application/json": {"schema": _ref("Refusal")}}
    return {
        "operationId": "health",
        "summary": "Check whether a worker has loaded the model and run an image through it.",
        "security": [{}],
        "responses": {
            "200": {"description": "It has.", "content": {"application/json": {"schema": ready}}},
            "503": {"description": "`not_ready`: none yet.", "content": refusal},
        },
    }


def _responses(answer: Mapping[str, Any]) -> dict[str, Any]:
    reasons: dict[int, list[str]] = {}
    for error in answer_errors():
        reasons.setdefault(error.status, []).append(f"`{error.code}`: {inspect.getdoc(error)}")
    for status, code, message in proxy_refusals():
        reasons.setdefault(status, []).append(f"`{code}`: {message}")
    refusals = {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}. " + " ".join(lines),
            "content": {"application/json": {"schema": _ref("Refusal")}},
        }
        for status, lines in sorted(reasons.items())
    }
    served = {
        "description": "What was found.",
        "content": {"application/json": {"schema": answer}},
    }
    return {"200": served, **refusals}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _option_schemas() -> dict[str, Any]:
    return {
        name: {**option.schema, "description": option.description}
        for name, option in OPTIONS.items()
    }


def _object(properties: Mapping[str, Any], *, optional: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _schemas() -> dict[str, Any]:
    base64 = {"type": "string", "format": "byte", "description": "A JPEG or PNG file."}
    parameters = _object(_option_schemas(), optional=list(OPTIONS))
    images = {
        "type": "array",
        "items": {"type": "object", "properties": {"b64": base64}, "required": ["b64"]},
        "minItems": 1,
        "maxItems": MAX_IMAGES,
    }
    whole = {"type": "integer", "minimum": 1}
    codes = [error.code for error in answer_errors()] + [code for _, code, _ in proxy_refusals()]
    return {
        "OneImage": _object({"image": base64, "parameters": parameters}, optional=["parameters"]),
        "Images": _object({"instances": images, "parameters": parameters}, optional=["parameters"]),
        "Answer": _object(
            {
                "image": _object({"height": whole, "width": whole}),
                "model": _object({"name": _MODEL, "version": _MODEL}),
                "instances": {
                    "type": "array",
                    "items": _instance(),
                    "description": "Best score first.",
                },
            }
        ),
        "Answers": _object(
            {
                "predictions": {
                    "type": "array",
                    "items": {"oneOf": [_ref("Answer"), _ref("Refusal")]},
                    "description": "One for each image; an image fails alone.",
                }
            }
        ),
        "Refusal": _object(
            {
                "error": _object(
                    {
                        "code": {"type": "string", "enum": [*dict.fromkeys(codes), "not_ready"]},
                        "message": {"type": "string", "minLength": 1},
                    }
                )
            }
        ),
    }


def _instance() -> dict[str, Any]:
    size = {"type": "integer", "minimum": 1}
    properties = {
        "category_id": {"type": "integer"},
        "category": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "bbox": {
            "type": "array",
            "items": _PIXELS,
            "minItems": 4,
            "maxItems": 4,
            "description": "Left, top, width, height.",
        },
        "polygon": {
            **_POLYGON,
            "description": "Ray ends (x, y), clipped to the image. Of R vertices, number k lies on "
            "the ray at 360 k / R degrees clockwise from the right, so the first is to the right "
            "of the centre. Of an instance in several parts, the best part.",
        },
        "polygons": {
            "type": "array",
            "items": _POLYGON,
            "minItems": 2,
            "description": "All parts, the best first; only of an instance in several parts.",
        },
        "rle": _object(
            {
                "size": {
                    "type": "array",
                    "items": size,
                    "minItems": 2,
                    "maxItems": 2,
                    "description": "Height, width.",
                },
                "counts": {"type": "string", "description": "COCO's compressed run lengths."},
            }
        ),
        "center": {**_POINT, "description": "Where the rays start."},
        "rays": {
            "type": "array",
            "items": {"type": "number", "minimum": 0},
            "minItems": 3,
            "description": "Ray lengths in the order of the vertices, not clipped to the image.",
        },
    }
    return _object(properties, optional=["polygon", "polygons", "rle", "center", "rays"])


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
