"""Bytes <-> images <-> JSON: what clients send and what they get. Knows nothing of TorchServe.

A request is the bytes of one JPEG or PNG (raw body or multipart field `image`) or KServe v1 JSON,
`{"instances": [{"b64": "..."}], "parameters": {...}}`. Options come from headers (`X-Mask`),
multipart fields (`mask`) or JSON parameters; the later in this list wins.

All geometry in answers is in pixels of the image as it is to be looked at, that is, after its EXIF
orientation; x points right, y points down, and the pixel in row i, column j covers
`[j, j + 1) x [i, i + 1)`.
"""

import base64
import binascii
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from polarmask.inference import Instances
from polarmask_serving.errors import (
    AnswerError,
    BadJsonError,
    BadOptionError,
    DamagedImageError,
    EmptyRequestError,
    ImageTooLargeError,
    NotAnImageError,
    RequestError,
)

MAX_PIXELS = 25_000_000
"""Pixels of all images of one request together; a 300 kB PNG can hold 100 million."""
MAX_SIDE = 10_000
"""Pixels of the longer side."""
MAX_IMAGES = 8
"""Images in one JSON request."""

Mask = Literal["polygon", "rle", "none"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the client wants to see of an answer."""

    score_threshold: float = 0.3
    """Instances below this score are left out, in [0, 1]."""
    max_instances: int | None = None
    """At most so many instances, best first; None leaves it to the model."""
    mask: Mask = "polygon"
    """Form of the masks: vertices, COCO compressed RLE, or none."""


_OPTION_TYPES: dict[str, type] = {"score_threshold": float, "max_instances": int, "mask": str}
_OPTION_HEADERS = {f"x-{name.replace('_', '-')}": name for name in _OPTION_TYPES}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request, decoded as far as possible."""

    images: tuple[NDArray[np.uint8] | AnswerError, ...]
    """(H, W, 3) RGB, or why there is none; never empty."""
    options: Options = Options()
    as_list: bool = False
    """Answer `{"predictions": [...]}`, as KServe v1 wants it."""


def read_request(fields: Mapping[str, object], headers: Mapping[str, object]) -> Request:
    """Read one request.

    Args:
        fields: `body` (bytes, or JSON decoded already) or the multipart fields by name.
        headers: HTTP headers; values that aren't text are ignored.

    Raises:
        RequestError: The request as a whole is unusable. An image that can't be decoded doesn't
            raise: its error stands in `Request.images`, beside its neighbours.
    """
    chosen: dict[str, object] = {
        _OPTION_HEADERS[name.lower()]: value
        for name, value in headers.items()
        if name.lower() in _OPTION_HEADERS and isinstance(value, str)
    }
    if "body" in fields:
        body = fields["body"]
        if isinstance(body, bytes | bytearray) and body.lstrip()[:1] in (b"{", b"["):
            body = _load_json(body)
        if not isinstance(body, bytes | bytearray):
            encoded, parameters = _read_json(body)
            options = _read_options(chosen | parameters)
            return Request(images=decode_images(encoded), options=options, as_list=True)
        return Request(options=_read_options(chosen), images=decode_images([body]))

    if "image" not in fields:
        raise EmptyRequestError("no image: send one as the body or as the multipart field `image`")
    chosen |= {name: value for name, value in fields.items() if name != "image"}
    return Request(options=_read_options(chosen), images=decode_images([fields["image"]]))


def _load_json(body: bytes | bytearray) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadJsonError("the body begins like JSON and can't be read as JSON") from error


def _read_json(body: object) -> tuple[list[bytes], dict[str, object]]:
    """Return the encoded images and the parameters of a KServe v1 request."""
    form = '{"instances": [{"b64": "..."}], "parameters": {...}}'
    instances = body.get("instances") if isinstance(body, dict) else None
    parameters = body.get("parameters", {}) if isinstance(body, dict) else None
    if not isinstance(instances, list) or not instances or not isinstance(parameters, dict):
        raise BadJsonError(f"expected {form}")
    if len(instances) > MAX_IMAGES:
        raise BadJsonError(f"{len(instances)} instances: at most {MAX_IMAGES} fit in one request")
    try:
        return [base64.b64decode(item["b64"], validate=True) for item in instances], parameters
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise BadJsonError(f"each instance needs an image in base64: {form}") from error


def _read_options(chosen: Mapping[str, object]) -> Options:
    """Check options given as text, bytes or JSON values."""
    settings: dict[str, Any] = {}
    for name, value in chosen.items():
        if name not in _OPTION_TYPES:
            known = ", ".join(_OPTION_TYPES)
            raise BadOptionError(f"unknown option {name[:50]!r}; there are: {known}")
        if isinstance(value, bytes | bytearray):
            value = value.decode("ascii", "replace")
        text = str(value)
        try:
            settings[name] = _OPTION_TYPES[name](text)
        except ValueError as error:
            raise BadOptionError(f"{name} is {text[:50]!r}, not a number") from error
    options = Options(**settings)
    if not 0 <= options.score_threshold <= 1:
        raise BadOptionError(f"score_threshold is {options.score_threshold}: must be in [0, 1]")
    if options.max_instances is not None and options.max_instances < 1:
        raise BadOptionError(f"max_instances is {options.max_instances}: at least 1 is needed")
    if options.mask not in get_args(Mask):
        raise BadOptionError(f"mask is {options.mask[:50]!r}: must be {', '.join(get_args(Mask))}")
    return options


def decode_images(encoded: Sequence[object]) -> tuple[NDArray[np.uint8] | AnswerError, ...]:
    """Decode each image alone; the pixel limit holds for all together."""
    images: list[NDArray[np.uint8] | AnswerError] = []
    left = MAX_PIXELS
    for data in encoded:
        try:
            image = decode_image(data, max_pixels=left)
            left -= image.shape[0] * image.shape[1]
            images.append(image)
        except RequestError as error:
            images.append(error)
    return tuple(images)


def decode_image(data: object, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Turn the bytes of a JPEG or PNG into an upright image, (H, W, 3) RGB.

    EXIF orientation is applied. Grey is repeated, palettes are looked up, 16 bits lose their lower
    half, CMYK is converted, transparency is dropped: as training reads its images.

    Raises:
        RequestError: Not an image, too large by its header (no pixel is decoded then), damaged.
    """
    if not isinstance(data, bytes | bytearray):
        raise NotAnImageError("send the bytes of a JPEG or PNG file")
    if not data:
        raise EmptyRequestError("the image has no bytes")
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        raise NotAnImageError("only JPEG and PNG are read")
    width, height = _size_by_header(data)
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(
            f"{width} x {height} pixels: a request may hold {MAX_PIXELS} pixels in all, "
            f"{MAX_SIDE} a side"
        )
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DamagedImageError("the image breaks off or is damaged")
    return cast(NDArray[np.uint8], cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def _size_by_header(data: bytes | bytearray) -> tuple[int, int]:
    """Return (width, height) without decoding a pixel."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what we refuse right after.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                return image.size
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"more than {MAX_PIXELS} pixels") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DamagedImageError("the image's header can't be read") from error


def write_answer(
    request: Request, outcomes: Sequence[Instances | AnswerError], model: Mapping[str, str]
) -> tuple[AnswerError | None, bytes]:
    """Write the answer to one request.

    Args:
        request: What was asked.
        outcomes: One for each image of the request, in order.
        model: `name` and `version` of the model that answers.

    Returns:
        The error that gives the HTTP status (None: 200) and the body, compact JSON. In a list an
        image fails alone: the status is an error only if no image has an answer.
    """
    parts = [
        error_part(outcome)
        if isinstance(outcome, AnswerError)
        else instances_part(outcome, request.options, model)
        for outcome in outcomes
    ]
    errors = [outcome for outcome in outcomes if isinstance(outcome, AnswerError)]
    failed = errors[0] if len(errors) == len(parts) else None
    if failed is not None:
        return failed, to_json(error_part(failed))
    return None, to_json({"predictions": parts} if request.as_list else parts[0])


def error_part(error: AnswerError) -> dict[str, Any]:
    """Return the JSON form of an error."""
    return {"error": {"code": error.code, "message": str(error)}}


def instances_part(
    instances: Instances, options: Options, model: Mapping[str, str]
) -> dict[str, Any]:
    """Return the JSON form of the instances the options let through, best first."""
    height, width = instances.image_hw
    kept = int((instances.scores >= options.score_threshold).sum())  # scores fall
    kept = kept if options.max_instances is None else min(kept, options.max_instances)
    masks = instances.rle()[:kept] if options.mask == "rle" else []
    entries = []
    for index in range(kept):
        entry: dict[str, Any] = {
            "category_id": int(instances.category_ids[index]),
            "category": instances.category_names[index],
            "score": round(float(instances.scores[index]), 4),
            "bbox": [round(value, 2) for value in instances.boxes_xywh[index].tolist()],
        }
        if options.mask == "polygon":
            outlines = [
                [[round(x, 2), round(y, 2)] for x, y in part.tolist()]
                for part in instances.parts(index)
            ]
            entry["polygon"] = outlines[0]
            if len(outlines) > 1:
                entry["polygons"] = outlines
        elif options.mask == "rle":
            entry["rle"] = masks[index]
        entries.append(entry)
    return {
        "image": {"height": height, "width": width},
        "model": dict(model),
        "instances": entries,
    }


def to_json(answer: Mapping[str, Any]) -> bytes:
    """Encode compactly; TorchServe itself would indent and more than double the size."""
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()
