"""What a JPEG or PNG holds and costs, read from its structure before a pixel is decoded.

Decoders pay for more than pixels: for each scan of a JPEG, each entry of its EXIF, each compressed
text of a PNG, and for pixels after the last row. 500 kB of those can take minutes. So the decoder
gets only the parts that it makes pixels and their orientation of, and what these cost is known.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from polarmask_serving.errors import (
    CostlyImageError,
    DamagedImageError,
    ImageTooLargeError,
    NotAnImageError,
    TooManyTilesError,
)

MAX_PIXELS = 25_000_000
"""Pixels of all images of one request together; a 300 kB PNG can hold 100 million."""
MAX_SIDE = 10_000
"""Pixels of the longer side."""
MAX_TILED_PIXELS = 16_000_000
"""Pixels that the network may see of the tiles of one request, padding and overlap included: of the
`tiny` network about 25 s on one slow CPU thread, of the 60 s after which a worker is killed. They
don't limit the instances: each tile may have the model's `max_instances`."""
MAX_SCANS = 500
"""Of all JPEGs of one request together. Programs write about ten."""
_MAX_SCANNED = 32 * MAX_PIXELS
"""Pixels times scans of one request: a few seconds of work."""
_MAX_PARTS = 50_000
"""Segments of a JPEG, chunks of a PNG: enough for 20 MiB in chunks of 512 bytes."""
_MAX_EXIF = 65_527
"""Bytes that fit into a JPEG."""
_MAX_RATIO = 1_032
"""Of zlib."""
_MAX_UNSEEN = 256_000_000
"""Bytes of pixels after the last rows of one request's PNGs: under a second of work."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _APP0, _APP1, _ADOBE, _COMMENT = 0xDA, 0xD9, 0xE0, 0xE1, 0xEE, 0xFE
_UNUSED_SEGMENTS = frozenset([*range(0xE0, 0xF0), _COMMENT]) - {_APP0, _ADOBE}
_USED_CHUNKS = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _no_tiles(image_hw: tuple[int, int]) -> int:
    return 0


@dataclass(kw_only=True)
class Budget:
    """What the images of one request may still cost together.

    An image pays before it is decoded, also one that turns out to be damaged then.
    """

    pixels: int = MAX_PIXELS
    scans: int = MAX_SCANS
    scanned: int = _MAX_SCANNED
    """Pixels times scans."""
    unseen: int = _MAX_UNSEEN
    """Bytes of pixels after the last row of a PNG."""
    tiled: int = MAX_TILED_PIXELS
    """Pixels that the network sees of images in tiles."""
    tiled_pixels: Callable[[tuple[int, int]], int] = _no_tiles
    """Those of an image of so many rows and columns; 0 if it stays whole."""

    def pay(self, width: int, height: int, *, scans: int = 1) -> None:
        """Take what an image costs.

        Raises:
            DamagedImageError: It has no size.
            ImageTooLargeError: It has too many pixels.
            CostlyImageError: It has too many scans.
            TooManyTilesError: It would be cut into too many tiles.
        """
        if not width or not height:
            raise DamagedImageError("the image's header can't be read")
        pixels = width * height
        if pixels > self.pixels or max(width, height) > MAX_SIDE:
            raise ImageTooLargeError(
                f"{width} x {height} pixels: a request may hold {MAX_PIXELS} pixels in all, "
                f"{MAX_SIDE} a side"
            )
        most = max(1, min(self.scans, self.scanned // pixels))  # any image has one scan
        if scans > most:
            raise CostlyImageError(
                f"the JPEG has {scans} scans; one of {width} x {height} pixels may have {most} "
                "in this request: save it again, not progressive"
            )
        tiled = self.tiled_pixels((height, width))
        if tiled > self.tiled:
            raise TooManyTilesError(
                f"the tiles of {width} x {height} pixels have {tiled / 1e6:.0f} million pixels, "
                f"those of a request may have {MAX_TILED_PIXELS / 1e6:.0f} million: send the image "
                "in parts, or with tile=none, which shrinks it and loses small objects"
            )
        self.pixels -= pixels
        self.scans -= scans
        self.scanned -= scans * pixels
        self.tiled -= tiled


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image that is worth decoding."""

    width: int
    height: int
    data: bytes
    """For the decoder: without texts, profiles and whatever else it makes no pixels of."""


def read_image_file(data: bytes, budget: Budget) -> ImageFile:
    """Read what a JPEG or PNG holds; quick, whatever the bytes are.

    Args:
        data: The file.
        budget: Of the request; this image's costs are taken from it.

    Raises:
        NotAnImageError: It begins like neither.
        DamagedImageError: It has no size.
        ImageTooLargeError: It has too many pixels.
        CostlyImageError: Decoding it would take much longer than its pixels need.
        TooManyTilesError: It would be cut into too many tiles.
    """
    if data.startswith(_JPEG):
        return _read_jpeg(data, budget)
    if data.startswith(_PNG):
        return _read_png(data, budget)
    raise NotAnImageError("only JPEG and PNG are read")


def _read_jpeg(data: bytes, budget: Budget) -> ImageFile:
    height, width, scans, kept, exif = 0, 0, 0, [data[:2]], b""
    for marker, start, end in _jpeg_segments(data):
        scans += marker == _SCAN
        if marker in _FRAMES and not width:
            height, width = struct.unpack(">HH", data[start + 5 : start + 9].ljust(4, b"\0"))
        if marker not in _UNUSED_SEGMENTS:
            kept.append(data[start:end])
        elif not exif and marker == _APP1 and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = data[start:end]
            kept.append(exif)
    budget.pay(width, height, scans=scans)
    return ImageFile(width=width, height=height, data=b"".join(kept))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment, as libjpeg finds them; a scan with its data."""
    at = len(_JPEG) - 1
    for _ in range(_MAX_PARTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        (start, at), marker = found.span(), data[found.end() - 1]
        if marker >= 0xC0 and marker not in range(0xD0, 0xDA):  # others have no length
            at = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
        if marker == _SCAN:
            after = _MARKER_AFTER_SCAN.search(data, at)
            at = after.start() if after else len(data)
        yield marker, start, at
        if marker == _END:
            return
    raise CostlyImageError(f"the JPEG has more than {_MAX_PARTS} segments")


def _read_png(data: bytes, budget: Budget) -> ImageFile:
    header, kept, exif = b"", [data[: len(_PNG)]], b""
    for kind, start, end in _png_chunks(data):
        if kind == b"IHDR" and header:
            raise DamagedImageError("the image has two headers")
        if kind == b"IHDR":
            header = data[start + 8 : end - 4]
        if kind in _USED_CHUNKS:
            kept.append(data[start:end])
        elif kind == b"eXIf" and not exif and end - start <= _MAX_EXIF:
            exif = data[start:end]
            kept.append(exif)
    width, height, bits, colours = struct.unpack(">IIBB", header[:10].ljust(10, b"\0"))
    budget.pay(width, height)
    row_bytes = 1 + (width * bits * _CHANNELS.get(colours, 4) + 7) // 8
    packed = [each[8:-4] for each in kept if each[4:8] == b"IDAT"]
    budget.unseen -= _unseen_bytes(packed, row_bytes * height, budget.unseen)
    return ImageFile(width=width, height=height, data=b"".join(kept))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk."""
    start = len(_PNG)
    for _ in range(_MAX_PARTS):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 12 + length
        yield kind, start, end
        if kind == b"IEND" or end >= len(data):
            return
        start = end
    raise CostlyImageError(f"the PNG has more than {_MAX_PARTS} chunks")


def _unseen_bytes(parts: Sequence[bytes], expected: int, most: int) -> int:
    """Return how many bytes of pixels come after the last row, at most: libpng unpacks them all.

    Args:
        parts: Packed by zlib.
        expected: Bytes of the image; interlaced, it may need twice as many.
        most: Bytes after the last row that are allowed.

    Raises:
        CostlyImageError: There are more.
    """
    possible = sum(map(len, parts)) * _MAX_RATIO - expected
    if possible <= most:
        return max(possible, 0)
    unpacker, unpacked = zlib.decompressobj(), 0
    try:
        for part in parts:
            left = part
            while left:
                unpacked += len(unpacker.decompress(left, 1 << 20))
                left = unpacker.unconsumed_tail
                if unpacked > 2 * expected + most:
                    raise CostlyImageError("the PNG has pixels far beyond its last row")
    except zlib.error:
        pass  # the decoder will say so
    return max(unpacked - 2 * expected, 0)
