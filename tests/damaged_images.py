"""Image files damaged where their formats have structure, so that decoders read on past the damage.

A file is taken apart into segments, chunks or boxes; some are dropped, repeated, swapped, renamed,
changed or compressed again, and all is put together with right lengths and checksums.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_SCAN = 0xDA
_BOXES_IN = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iinf": 6, b"moov": 0}
"""Boxes of boxes, with the number of bytes that come before these."""
_NUMBERS = (0, 1, 2, 3, 7, 8, 12, 16, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
_TIMES = (1, 1, 2, 30, 600)


def image_files(picture):
    """Return a (H, W, 3) RGB image in the formats and forms people have, as bytes by name."""
    image = Image.fromarray(picture)
    exif = Image.Exif()
    for tag, value in {0x10E: "cells", 0x112: 6, 0x11A: 72.0}.items():
        exif[tag] = value
    about = {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(_srgb()).tobytes()}
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) << 8)
    palette = image.convert("P")
    forms = {
        "jpeg": (image, {"quality": 90, "restart_marker_rows": 1, **about}),
        "progressive.jpeg": (image, {"progressive": True, "subsampling": 2, **about}),
        "grey.jpeg": (image.convert("L"), {}),
        "cmyk.jpeg": (image.convert("CMYK"), about),
        "png": (image.convert("RGBA"), about),
        "palette.png": (palette, {"transparency": bytes(range(256)), "bits": 8, **about}),
        "deep.png": (deep, about),
        "grey.png": (image.convert("1"), about),
        "tiff": (image, {"compression": "tiff_lzw", **about}),
        "palette.tiff": (palette, {"compression": "packbits"}),
        "pages.tiff": (deep, {"save_all": True, "append_images": [deep, deep]}),
        "webp": (image, about),
        "moving.webp": (image.convert("RGBA"), {"save_all": True, "append_images": [image]}),
        "avif": (image, {"speed": 10, **about}),
    }
    return {name: _file(each, name, options) for name, (each, options) in forms.items()}


def _srgb():
    return ImageCms.createProfile("sRGB")


def _file(image, name, options):
    out = io.BytesIO()
    image.save(out, name.rpartition(".")[2], **options)
    return out.getvalue()


def damaged_file(rng, files):
    """Return one of these files, damaged in one to three places."""
    data = rng.choice(files)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = _damage(rng, data)
    return data


def _damage(rng, data):
    if data.startswith(_JPEG):
        return _JPEG + _join(_jpeg_part, _damage_parts(rng, _jpeg_parts(data))) + b"\xff\xd9"
    if data.startswith(_PNG):
        return _PNG + _join(_png_part, _damage_parts(rng, _png_parts(data)))
    if data.startswith(_TIFF):
        return _damage_directory(rng, data)
    if data[:4] == b"RIFF":
        body = _join(_riff_part, _damage_parts(rng, _riff_parts(data[12:])))
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    return _damage_boxes(rng, data)


def _join(write, parts):
    return b"".join(write(kind, content) for kind, content in parts)


def _damage_parts(rng, parts):
    """Damage a list of (kind, content) in one way."""
    parts = list(parts)
    if not parts:
        return parts
    at = rng.randrange(len(parts))
    kind, content = parts[at]
    way = rng.choice(("drop", "repeat", "move", "rename", *["change"] * 6))
    if way == "drop":
        del parts[at]
    elif way == "repeat":
        parts[at : at + 1] = [parts[at]] * rng.choice(_TIMES)
    elif way == "move":
        parts.insert(rng.randrange(len(parts)), parts.pop(at))
    elif way == "rename":
        parts[at] = (rng.choice(parts)[0], content)
    else:
        parts[at] = (kind, _changed(rng, content))
    return parts


def _changed(rng, content):
    """Return the content of a part, damaged by its kind, or as any bytes."""
    for start in (0, 6):  # EXIF of PNG and WebP; of JPEG
        if content[start : start + 4] in _TIFF and rng.random() < 0.8:
            return content[:start] + _damage_directory(rng, content[start:])
    packed = content.find(b"\x78")
    if 0 <= packed < 100 and rng.random() < 0.4:
        return content[:packed] + _repacked(rng, content[packed:])
    data = bytearray(content[: rng.choice((len(content), rng.randrange(len(content) + 1)))])
    for _ in range(rng.choice((0, 1, 3)) if data else 0):
        # The first bytes are sizes, counts and flags.
        at = rng.randrange(min(len(data), rng.choice((4, 16, len(data)))))
        data[at] = rng.choice((0, 1, 255, rng.randrange(256)))
    return bytes(data) + bytes(rng.choice((0, 0, 1, 60_000 - min(60_000, len(data)))))


def _repacked(rng, packed):
    """Return a zlib stream whose content is shorter or far longer."""
    try:
        content = zlib.decompress(packed)
    except zlib.error:
        return packed
    longer = content + bytes(rng.choice((1, 1000, 3_000_000)))
    return zlib.compress(rng.choice((longer, content[: len(content) // 2], content[:1], b"")))


def _damage_directory(rng, data):
    """Change an entry of a TIFF's directory, its length, or where it goes on."""
    data = bytearray(data)
    order = "little" if data[:2] == b"II" else "big"
    at = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[at : at + 2], order)
    entry = at + 2 + 12 * rng.randrange(max(entries, 1))
    where, size = rng.choice(
        ((4, 4), (at, 2), (at + 2 + 12 * entries, 4), (entry, 2), (entry + 2, 2))
        + ((entry + 4, 4), (entry + 8, 4), (entry + 8, 2)) * 2
    )
    if where + size <= len(data):
        number = rng.choice((*_NUMBERS, at, entries, len(data), rng.randrange(len(data))))
        data[where : where + size] = (number % 256**size).to_bytes(size, order)
    return bytes(data)


def _damage_boxes(rng, data):
    """Damage boxes (AVIF), or the boxes in one of them."""
    parts = _boxes(data)
    inner = [at for at, (kind, content) in enumerate(parts) if kind in _BOXES_IN and content]
    if inner and rng.random() < 0.8:
        at = rng.choice(inner)
        kind, content = parts[at]
        head = _BOXES_IN[kind]
        parts[at] = (kind, content[:head] + _damage_boxes(rng, content[head:]))
    else:
        parts = _damage_parts(rng, parts)
    damaged = _join(_box, parts)
    if rng.random() < 0.1:  # a length that lies: to the end, 64 bits, far beyond
        damaged = struct.pack(">I", rng.choice(_NUMBERS)) + damaged[4:]
    return damaged


def _jpeg_parts(data):
    """Return (marker, content) of a JPEG; a scan's content ends with its coded pixels."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if marker == _SCAN:
            while end + 1 < len(data) and (
                data[end] != 0xFF or data[end + 1] == 0 or data[end + 1] in range(0xD0, 0xD8)
            ):
                end += 1
        parts.append(((marker, length - 2), data[at + 4 : end]))
        at = end
    return parts


def _jpeg_part(kind, content):
    marker, length = kind
    length = min(length, len(content), 65_533) if marker == _SCAN else min(len(content), 65_533)
    content = content if marker == _SCAN else content[:length]
    return b"\xff" + bytes([marker]) + struct.pack(">H", length + 2) + content


def _png_parts(data):
    parts, at = [], len(_PNG)
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return parts


def _png_part(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _riff_parts(data):
    parts, at = [], 0
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((data[at : at + 4], data[at + 8 : end]))
        at = end + end % 2
    return parts


def _riff_part(kind, content):
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _boxes(data):
    parts, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + size if size >= 8 else len(data)
        parts.append((data[at + 4 : at + 8], data[at + 8 : end]))
        at = end
    return parts


def _box(kind, content):
    return struct.pack(">I", len(content) + 8) + kind + content
