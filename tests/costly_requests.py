"""Requests whose cost is far above their size: each has to be refused before it is paid.

Images: `jpeg_of_scans`, `jpeg_of_exif`, `png_of_chunks`, `png_of_texts`, `png_of_exif`,
`png_with_long_pixels`. Forms: `form_of_fields` (`FORM_HEADERS` go with it). JSON: `wide_json`,
`deep_json`. Connections: `silent_connections`.
"""

import contextlib
import socket
import struct
import zlib

FORM_HEADERS = {"Content-Type": "multipart/form-data; boundary=B"}


def jpeg_of_scans(scans, side=64):
    """A progressive grey JPEG of side x side pixels with so many refinement scans."""
    bits = ("0" + "1" * 14) * 12
    bits += "1" * (-len(bits) % 8)
    scan = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(
        b"\xff", b"\xff\0"
    )
    blocks = (-(-side // 8)) ** 2
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xDB, b"\0" + b"\1" * 64),
            _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"),
            _segment(0xC4, b"\0\1" + b"\0" * 15 + b"\0"),
            _segment(0xC4, b"\x10\1" + b"\0" * 15 + b"\xe0"),
            _segment(0xDA, b"\1\1\0\0\0\0") + b"\0" * (blocks // 8 + 1),
            (b"\xff\xda\0\x08\1\1\0\1\x3f\x10" + scan) * (scans - 1),
            b"\xff\xd9",
        ]
    )


def jpeg_of_exif(jpeg, copies):
    """A JPEG with a large EXIF block many times over."""
    return (
        jpeg[:2] + _segment(0xE1, b"Exif\0\0" + exif_of_entries(5_000, 63_000)) * copies + jpeg[2:]
    )


def jpeg_of_segments(jpeg, segments):
    """A JPEG with so many empty comments."""
    return jpeg[:2] + _segment(0xFE, b"") * segments + jpeg[2:]


def exif_of_entries(entries, size):
    """EXIF of so many bytes, whose entries each name nearly all of it as their text."""
    entry = struct.pack("<HHII", 0x10E, 2, size - 20, 8)
    head = b"II*\0" + struct.pack("<IH", 8, entries) + entry * entries + bytes(4)
    return head + b"a" * (size - len(head))


def png_with(extra, *, side=64, pixels=None):
    """A black PNG with further chunks before its pixels, or with another stream of pixels."""
    pixels = pixels or zlib.compress(bytes((1 + 3 * side) * side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_of_chunks(chunks):
    """A PNG with so many empty chunks."""
    return png_with(_chunk(b"abCd", b"") * chunks)


def png_of_texts(texts):
    """A PNG with so many compressed texts of 4 MB each."""
    return png_with(_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(4_000_000))) * texts)


def png_of_exif(entries, size):
    return png_with(_chunk(b"eXIf", exif_of_entries(entries, size)))


def png_with_long_pixels(megabytes):
    """A PNG whose stream of pixels goes on for so many MB after the last row."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1_000_000)) for _ in range(megabytes)]
    return png_with(b"", pixels=b"".join([*parts, packer.flush()]))


def form_of_fields(fields):
    """The body of a form of so many empty fields; send it with `FORM_HEADERS`."""
    part = b"--B\r\nContent-Disposition: form-data; name=%x\r\n\r\n\r\n"
    return b"".join(part % number for number in range(fields)) + b"--B--\r\n"


def deep_json(levels):
    return b'{"image": ' + b"[" * levels


def wide_json(values):
    return b'{"image": [' + b"{}," * values + b"0]}"


@contextlib.contextmanager
def silent_connections(port, number, *, sent=b""):
    """Hold so many connections to a port of this machine that send nothing, or so little."""
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(number)
        ]
        for connection in opened:
            with contextlib.suppress(OSError):  # refused already
                connection.sendall(sent)
        yield opened


def _segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def _chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum
