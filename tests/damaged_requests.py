"""Requests as nobody should send them: real images and bodies, damaged by chance but repeatably."""

import base64
import json
import random
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache

import costly_requests
from damaged_images import damaged_file

OPTIONS = ("score_threshold", "max_instances", "categories", "mask", "return_rays", "tile", "maks")
ODD_VALUES = (
    *("", "0", "1", "-1", "0.5", "1e309", "nan", "inf", "true", "rle", "none", "polygon"),
    *("nucleus", "3", "[3]", "[", "{}", "null", "a" * 3000, "\t", "%00", "../../etc", "ü", "0x10"),
)
ODD_JSON = (
    None,
    True,
    -1,
    0,
    3,
    1e308,
    "",
    "rle",
    "none",
    "nucleus",
    [],
    [3],
    [[]],
    {},
    {"b64": 1},
)


@dataclass
class Damaged:
    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def damaged_requests(images, number, seed=0):
    """Yield so many requests, the same ones for the same seed."""
    rng = random.Random(seed)
    kinds = [_raw, _raw, _raw, _raw, _file, _file, _file, _file]
    kinds += [_options, _json, _json_text, _form, _garbage, _costly]
    for index in range(number):
        yield kinds[index % len(kinds)](rng, images)


def damaged_image(rng, images):
    data = bytearray(rng.choice(images))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        data = rng.choice(_WAYS)(rng, data, images)
    return bytes(data)


def _flip_bits(rng, data, images):
    for _ in range(rng.choice((1, 3, 20))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _flip_header(rng, data, images):
    for _ in range(rng.choice((1, 4))):
        if data:
            data[rng.randrange(min(len(data), 80))] = rng.randrange(256)
    return data


def _break_off(rng, data, images):
    return data[: rng.randrange(len(data) + 1)]


def _cut_out(rng, data, images):
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 200) :]


def _paste(rng, data, images):
    other = rng.choice(images)
    start, where = rng.randrange(len(other)), rng.randrange(len(data) + 1)
    return data[:where] + other[start : start + rng.randrange(1, 500)] + data[where:]


def _lie_about_size(rng, data, images):
    """Write another size into the header, with a right checksum where there is one."""
    width, height = (rng.choice((0, 1, 7, 4999, 10_000, 65_535, 2**31 - 1)) for _ in "wh")
    if data[:4] == b"\x89PNG" and len(data) > 33:
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        at = data.find(marker)
        if 0 < at < len(data) - 9:
            data[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return data


_WAYS = (_flip_bits, _flip_header, _break_off, _cut_out, _paste, _lie_about_size)


def _raw(rng, images):
    kind = rng.choice(("image/png", "image/jpeg", "application/octet-stream", "text/plain"))
    return Damaged("image", damaged_image(rng, images), {"Content-Type": kind})


def _file(rng, images):
    return Damaged("file", damaged_file(rng, images), {"Content-Type": "image/jpeg"})


def _costly(rng, images):
    """Return a request that takes far longer than its size suggests, unless it is refused."""
    build, sizes = rng.choice(_COSTLY)
    body = build(rng.choice(sizes))
    form = build is costly_requests.form_of_fields
    kind = "costly form" if form else "costly"
    return Damaged(kind, body, costly_requests.FORM_HEADERS if form else {})


@cache
def _exif(copies):
    return costly_requests.jpeg_of_exif(costly_requests.jpeg_of_scans(1), copies)


_COSTLY = [
    (cache(costly_requests.jpeg_of_scans), (10, 499, 501, 12_000)),
    (_exif, (1, 20, 200)),
    (cache(costly_requests.png_of_chunks), (1000, 49_000, 60_000)),
    (cache(costly_requests.png_of_texts), (1, 30)),
    (cache(costly_requests.png_with_long_pixels), (1, 300)),
    (costly_requests.form_of_fields, (2, 40, 3000, 100_000)),
    (costly_requests.deep_json, (100, 100_000)),
    (costly_requests.wide_json, (100, 1_000_000)),
]


def _options(rng, images):
    headers = {"Content-Type": "image/png"}
    for name in rng.sample(OPTIONS, rng.randrange(1, 4)):
        value = rng.choice(ODD_VALUES).strip().encode("utf-8").decode("latin-1")
        headers["X-" + name.replace("_", "-")] = value
    return Damaged("options", rng.choice(images), headers)


def _content(rng, images):
    def text():
        data = rng.choice(images) if rng.random() < 0.5 else damaged_image(rng, images)
        return base64.b64encode(data).decode()

    parameters = {name: rng.choice(ODD_JSON) for name in rng.sample(OPTIONS, rng.randrange(3))}
    if rng.random() < 0.5:
        return {"image": text(), "parameters": parameters}
    items = [{"b64": text()} for _ in range(rng.choice((1, 2, 3, 9)))]
    return {"instances": items, "parameters": parameters}


def _json(rng, images):
    content = _content(rng, images)
    if rng.random() < 0.4:
        content[rng.choice([*content, "extra"])] = rng.choice(ODD_JSON)
    return Damaged("JSON", json.dumps(content).encode(), {"Content-Type": "application/json"})


def _json_text(rng, images):
    data = bytearray(json.dumps(_content(rng, images[-1:])).encode())
    way = rng.choice((_flip_bits, _flip_header, _break_off, _cut_out))
    body = bytes(way(rng, data, images))
    return Damaged("JSON text", body, {"Content-Type": "application/json"})


def _form(rng, images):
    parts = [("image", damaged_image(rng, images) if rng.random() < 0.5 else rng.choice(images))]
    parts += [
        (rng.choice(OPTIONS), rng.choice(ODD_VALUES).encode()) for _ in range(rng.randrange(3))
    ]
    body = b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n'
        % (name.encode(), value)
        for name, value in parts
    )
    body += b"--cut--\r\n"
    if rng.random() < 0.5:
        body = bytes(rng.choice((_flip_header, _break_off, _cut_out))(rng, bytearray(body), images))
    kind = rng.choice(("multipart/form-data; boundary=cut",) * 5 + ("multipart/form-data",))
    return Damaged("form", body, {"Content-Type": kind})


def _garbage(rng, images):
    start = rng.choice((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"{", b"[", b"GIF89a", b"%PDF"))
    kind = rng.choice(("image/png", "application/json", "application/x-protobuf", ""))
    body = start + rng.randbytes(rng.choice((0, 1, 10, 1000, 100_000)))
    return Damaged("garbage", body, {"Content-Type": kind} if kind else {})
