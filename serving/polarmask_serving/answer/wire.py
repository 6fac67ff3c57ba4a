"""HTTP bodies <-> requests and answers: what clients send and get. Knows nothing of TorchServe.

A request is the bytes of one JPEG or PNG (raw body or multipart field `image`), JSON with one,
`{"image": "BASE64", "parameters": {...}}`, or KServe v1 JSON with several,
`{"instances": [{"b64": "BASE64"}], "parameters": {...}}`, each of which fails alone. Options come
from headers (`X-Mask`), multipart fields (`mask`) or JSON parameters; the later in this list wins.

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

from polarmask.inference.instances import Instances
from polarmask_serving.answer.forms import is_form, read_form
from polarmask_serving.answer.options import (
    BODY_TYPE_HEADER,
    MAX_IMAGES,
    Options,
    options_in_headers,
    read_options,
)
from polarmask_serving.errors import (
    AnswerError,
    AnswerTooLargeError,
    BadJsonError,
    EmptyRequestError,
)

_USUAL = Options()
MAX_ANSWER_BYTES = 20_971_520
"""`max_response_size` of config.properties: TorchServe ends a worker that sends more."""
_MAX_VALUES = 10_000
"""In the JSON of one request: 3 bytes can become a hundred, 20 MB nearly a gigabyte."""
_BEFORE_JSON = b"\xef\xbb\xbf\xfe\xff\0 \t\r\n"
"""White space, and what marks Unicode."""
_ONE = '{"image": "BASE64", "parameters": {...}}'
_SEVERAL = '{"instances": [{"b64": "BASE64"}], "parameters": {...}}'


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """What one request asks for; its images are still encoded."""

    images: tuple[object, ...]
    """Bytes of image files, or what is wrong with one; never empty."""
    options: Options = _USUAL
    as_list: bool = False
    """Answer `{"predictions": [...]}`, as KServe v1 wants it."""


def read_request(
    fields: Mapping[str, object], headers: Mapping[str, object], categories: Mapping[int, str]
) -> ParsedRequest:
    """Read one request.

    Args:
        fields: TorchServe's; the body is `body`.
        headers: HTTP headers; values that aren't text are ignored.
        categories: The model's, names by id.

    Raises:
        RequestError: The request as a whole is unusable.
    """
    in_headers = options_in_headers(headers)
    body = fields.get("body", b"")
    if not isinstance(body, bytes | bytearray):
        return ParsedRequest(images=(body,), options=read_options([in_headers], categories))
    kind = {name.lower(): value for name, value in headers.items()}.get(BODY_TYPE_HEADER)
    if isinstance(kind, str) and is_form(kind):
        in_form: dict[str, object] = {**read_form(bytes(body), kind)}
        if "image" not in in_form:
            raise EmptyRequestError("no image: send one as the body or as the form field `image`")
        image = in_form.pop("image")
        options = read_options([in_headers, in_form], categories)
        return ParsedRequest(images=(image,), options=options)
    if not body[:100].lstrip(_BEFORE_JSON).startswith((b"{", b"[")):
        return ParsedRequest(images=(body,), options=read_options([in_headers], categories))
    images, parameters, as_list = _read_json(body)
    options = read_options([in_headers, parameters], categories)
    return ParsedRequest(images=images, options=options, as_list=as_list)


def _read_json(body: bytes | bytearray) -> tuple[tuple[object, ...], dict[str, object], bool]:
    """Return the encoded images, the parameters, and whether the answer is to be a list."""
    if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise BadJsonError(f"the JSON has more than {_MAX_VALUES} values")
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
    if not as_list:
        return (_decoded(content["image"], form),), parameters, as_list
    instances = content["instances"]
    if not isinstance(instances, list) or not 1 <= len(instances) <= MAX_IMAGES:
        raise BadJsonError(f"`instances` is no list of 1 to {MAX_IMAGES} images: expected {form}")
    return tuple(map(_read_instance, instances)), parameters, as_list


def _read_instance(instance: object) -> bytes | BadJsonError:
    """Return the encoded image of an instance, or why there is none."""
    if not isinstance(instance, dict) or set(instance) != {"b64"}:
        return BadJsonError(
            'an instance has to be {"b64": "BASE64"} and nothing else; options go into `parameters`'
        )
    try:
        return _decoded(instance["b64"], _SEVERAL)
    except BadJsonError as error:
        return error


def _decoded(text: object, form: str) -> bytes:
    """Decode base64.

    Raises:
        BadJsonError: It is none.
    """
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]  # TypeError
    except (TypeError, ValueError) as error:
        raise BadJsonError(f"an image is no base64: expected {form}") from error


def write_answer(
    request: ParsedRequest,
    outcomes: Sequence[Instances | AnswerError],
    model: Mapping[str, str],
    *,
    default_score: float,
) -> tuple[AnswerError | None, bytes]:
    """Write the answer to one request.

    Args:
        request: What was asked.
        outcomes: One for each image of the request, in order; instances that score enough.
        model: `name` and `version` of the model that answers.
        default_score: Lowest score of the model where a request names none, in [0, 1].

    Returns:
        The error that gives the HTTP status (None: 200) and the body, compact JSON. In a list an
        image fails alone: the status is an error only if no image has an answer.

    Raises:
        AnswerTooLargeError: The body would have more than `MAX_ANSWER_BYTES`.
        ValueError: An answer would hold NaN or infinity.
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, AnswerError)]
    if len(errors) == len(outcomes):
        return errors[0], error_body(errors[0])
    about = {"model": dict(model), "default_score_threshold": default_score}
    parts = [
        _error_part(outcome)
        if isinstance(outcome, AnswerError)
        else _instances_part(outcome, request.options, about)
        for outcome in outcomes
    ]
    body = _to_json({"predictions": parts} if request.as_list else parts[0])
    if len(body) > MAX_ANSWER_BYTES:
        raise AnswerTooLargeError(
            f"the answer would have {len(body) / 1e6:.0f} MB, the limit is "
            f"{MAX_ANSWER_BYTES / 1e6:.0f} MB: ask for less with score_threshold, max_instances or "
            "mask=none, or send the image in parts"
        )
    return None, body


def error_body(error: AnswerError) -> bytes:
    """Return the body of an answer that is an error."""
    return _to_json(_error_part(error))


def _error_part(error: AnswerError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": str(error)}}


def _instances_part(
    instances: Instances, options: Options, about: Mapping[str, Any]
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
        **about,
        **({"warnings": instances.warnings} if instances.warnings else {}),
        "instances": entries,
    }


def _shown(instances: Instances, options: Options) -> list[int]:
    """Return the rows the options let through."""
    wanted_N = np.ones(len(instances), np.bool_)
    if options.categories is not None:
        wanted_N = np.isin(instances.category_ids, options.categories)
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
