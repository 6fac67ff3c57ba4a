"""HTTP bodies <-> requests and answers: what clients send and get. Knows nothing of TorchServe.

A request is the bytes of one JPEG or PNG (raw body or multipart field `image`), JSON with one,
`{"image": "BASE64", "parameters": {...}}`, or KServe v1 JSON with several,
`{"instances": [{"b64": "BASE64"}], "parameters": {...}}`. Options come from headers (`X-Mask`),
multipart fields (`mask`) or JSON parameters; the later in this list wins.

All geometry in answers is in pixels of the image as it is to be looked at, that is, after its EXIF
orientation; x points right, y points down, and the pixel in row i, column j covers
`[j, j + 1) x [i, i + 1)`.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from polarmask.inference.predictor import Instances
from polarmask_serving.answer.options import MAX_IMAGES, Options, options_in_headers, read_options
from polarmask_serving.errors import (
    AnswerError,
    BadJsonError,
    EmptyRequestError,
)

_USUAL = Options()
_ONE = '{"image": "BASE64", "parameters": {...}}'
_SEVERAL = '{"instances": [{"b64": "BASE64"}], "parameters": {...}}'


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """What one request asks for; its images are still encoded."""

    images: tuple[object, ...]
    """Bytes of image files, or whatever the client sent in their place; never empty."""
    options: Options = _USUAL
    as_list: bool = False
    """Answer `{"predictions": [...]}`, as KServe v1 wants it."""


def read_request(
    fields: Mapping[str, object], headers: Mapping[str, object], categories: Mapping[int, str]
) -> ParsedRequest:
    """Read one request.

    Args:
        fields: `body`, bytes, or the multipart fields by name.
        headers: HTTP headers; values that aren't text are ignored.
        categories: The model's, names by id.

    Raises:
        RequestError: The request as a whole is unusable.
    """
    in_headers = options_in_headers(headers)
    if "body" not in fields:
        if "image" not in fields:
            raise EmptyRequestError(
                "no image: send one as the body or as the multipart field `image`"
            )
        in_fields = {name: value for name, value in fields.items() if name != "image"}
        options = read_options([in_headers, in_fields], categories)
        return ParsedRequest(images=(fields["image"],), options=options)
    body = fields["body"]
    if not isinstance(body, bytes | bytearray) or not body[:100].lstrip().startswith((b"{", b"[")):
        return ParsedRequest(images=(body,), options=read_options([in_headers], categories))
    images, parameters, as_list = _read_json(body)
    options = read_options([in_headers, parameters], categories)
    return ParsedRequest(images=images, options=options, as_list=as_list)


def _read_json(body: bytes | bytearray) -> tuple[tuple[bytes, ...], dict[str, object], bool]:
    """Return the encoded images, the parameters, and whether the answer is to be a list."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadJsonError("the body begins like JSON and can't be read as JSON") from error
    if not isinstance(content, dict) or ("image" in content) == ("instances" in content):
        raise BadJsonError(f"expected {_ONE} or {_SEVERAL}")
    as_list = "instances" in content
    form = _SEVERAL if as_list else _ONE
    unknown = set(content) - {"image", "instances", "parameters"}
    if unknown:
        raise BadJsonError(f"unknown name {min(unknown)[:50]!r}: expected {form}")
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadJsonError(f"`parameters` is no object: expected {form}")
    try:
        encoded = [item["b64"] for item in content["instances"]] if as_list else [content["image"]]
        images = tuple(base64.b64decode(text, validate=True) for text in encoded)
    except (KeyError, TypeError, ValueError) as error:
        raise BadJsonError(f"an image is no base64: expected {form}") from error
    if not 1 <= len(images) <= MAX_IMAGES:
        raise BadJsonError(f"{len(images)} images: 1 to {MAX_IMAGES} fit in one request")
    return images, parameters, as_list


def write_answer(
    request: ParsedRequest, outcomes: Sequence[Instances | AnswerError], model: Mapping[str, str]
) -> tuple[AnswerError | None, bytes]:
    """Write the answer to one request.

    Args:
        request: What was asked.
        outcomes: One for each image of the request, in order.
        model: `name` and `version` of the model that answers.

    Returns:
        The error that gives the HTTP status (None: 200) and the body, compact JSON. In a list an
        image fails alone: the status is an error only if no image has an answer.

    Raises:
        ValueError: An answer would hold NaN or infinity.
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, AnswerError)]
    if len(errors) == len(outcomes):
        return errors[0], error_body(errors[0])
    parts = [
        _error_part(outcome)
        if isinstance(outcome, AnswerError)
        else _instances_part(outcome, request.options, model)
        for outcome in outcomes
    ]
    return None, _to_json({"predictions": parts} if request.as_list else parts[0])


def error_body(error: AnswerError) -> bytes:
    """Return the body of an answer that is an error."""
    return _to_json(_error_part(error))


def _error_part(error: AnswerError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": str(error)}}


def _instances_part(
    instances: Instances, options: Options, model: Mapping[str, str]
) -> dict[str, Any]:
    """Return the answer for one image: the instances that the options let through, best first."""
    height, width = instances.image_hw
    shown = instances.select(_shown(instances, options))
    score_N, box_N4 = _rounded(shown.scores, 4), _rounded(shown.boxes_xywh, 2)
    entries: list[dict[str, Any]] = [
        {
            "category_id": int(shown.category_ids[row]),
            "category": shown.category_names[row],
            "score": score_N[row],
            "bbox": box_N4[row],
        }
        for row in range(len(shown))
    ]
    if options.mask == "polygon":
        polygon_NR2 = _rounded(shown.polygons, 2)
        for row, entry in enumerate(entries):
            entry["polygon"] = polygon_NR2[row]
            if row in shown.further_parts:
                entry["polygons"] = [polygon_NR2[row], *_rounded(shown.further_parts[row], 2)]
    elif options.mask == "rle":
        for entry, rle in zip(entries, shown.rle(), strict=True):
            entry["rle"] = rle
    if options.return_rays:
        center_N2, ray_NR = _rounded(shown.centers, 2), _rounded(shown.ray_lengths, 2)
        for row, entry in enumerate(entries):
            entry |= {"center": center_N2[row], "rays": ray_NR[row]}
    return {
        "image": {"height": height, "width": width},
        "model": dict(model),
        "instances": entries,
    }


def _shown(instances: Instances, options: Options) -> list[int]:
    """Return the rows the options let through."""
    wanted_N = instances.scores >= options.score_threshold
    if options.categories is not None:
        wanted_N &= np.isin(instances.category_ids, options.categories)
    return np.flatnonzero(wanted_N).tolist()[: options.max_instances]


def _rounded(numbers: NDArray[np.float32], decimals: int) -> NDArray[np.float32]:
    """Round an array of any shape.

    Raises:
        ValueError: It holds NaN or infinity, of which orjson would make null.
    """
    if not np.isfinite(numbers).all():
        raise ValueError("JSON has neither NaN nor infinity")
    return numbers.round(decimals)


def _to_json(answer: Mapping[str, Any]) -> bytes:
    """Encode compactly; TorchServe itself would indent and more than double the size."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
