"""Checks of a split's image files: which can be used, and what their readers should know."""

from contextlib import nullcontext
from pathlib import Path
from threading import Lock

from polarmask.config.input_settings import InputConfig
from polarmask.data.images import ImageHeader, read_header, read_image, too_large
from polarmask.data.intensity import fitting_bits, lacks_range
from polarmask.data.summary import Problem
from polarmask.errors import DataError

_LARGE = 16_000_000
"""Pixels above which threads decode one image at a time: one takes hundreds of megabytes."""
_SAMPLED = 32
"""Deep images, at most, that are decoded for their values where pixels are not checked."""


class ImageChecks:
    """Checks files one by one, in several threads if need be, then their values together."""

    def __init__(self, config: InputConfig | None, *, pixels: bool) -> None:
        """Create checks.

        Args:
            config: Of the run; None if not known, so that no image is left out because of it.
            pixels: Decode every image to find truncated ones; if false, headers are read only.
        """
        self._config = config
        self._pixels = pixels
        self._deep_types = {
            "as_is": ("uint16",),
            "bit_depth": ("uint16", "int32"),
            "percentile": (),
        }["as_is" if config is None else config.intensity]
        self._one_large = Lock()
        self._deep: list[str] = []
        self._highest: list[int] = []
        """Of the deep images that were decoded."""

    def check(self, path: Path, where: str, hw: tuple[int, int]) -> list[Problem]:
        """Return what is wrong with one file; the image is used if all of it is kept.

        Args:
            path: The file.
            where: Names the image in problems.
            hw: Rows and columns that the file should have.
        """
        try:
            path.stat()
        except (OSError, ValueError) as error:  # ValueError: no name that a file can have
            reason = getattr(error, "strerror", None) or error
            more = "" if isinstance(error, FileNotFoundError) else f" ({reason})"
            return [Problem("image", "missing_image", where, f"no such file under images/{more}")]
        try:
            header = read_header(path)
            refused = self._refuse(header, where, hw)
            if refused is None and self._must_decode(header):
                is_large = header.width * header.height > _LARGE
                with self._one_large if is_large else nullcontext():
                    refused = self._decode(path, header, where, hw)
        except DataError as error:
            return [Problem("image", "undecodable_image", where, str(error))]
        if refused is not None:
            return [refused]
        if header.values in self._deep_types:
            self._deep.append(where)
        return [Problem("image", *note, kept=True) for note in self._notes(header, where)]

    def _decode(
        self, path: Path, header: ImageHeader, where: str, hw: tuple[int, int]
    ) -> Problem | None:
        pixels = read_image(path)
        if str(pixels.dtype) in self._deep_types:
            self._highest.append(int(pixels.max()))
        return _check_size((pixels.shape[0], pixels.shape[1]), header, where, hw)

    def _refuse(self, header: ImageHeader, where: str, hw: tuple[int, int]) -> Problem | None:
        if self._config is not None:
            pixels, limit = header.width * header.height, self._config.max_pixels
            if pixels > limit:
                detail = too_large("the file", pixels, limit)
                return Problem("image", "too_many_pixels", where, detail)
            reason = lacks_range(header.values, self._config)
            if reason:
                return Problem("image", "unknown_intensity", where, f"the file holds {reason}")
        return _check_size((header.height, header.width), header, where, hw)

    def _must_decode(self, header: ImageHeader) -> bool:
        limit = (self._config or InputConfig()).max_pixels
        is_sample = header.values in self._deep_types and len(self._highest) < _SAMPLED
        return (self._pixels or is_sample) and header.width * header.height <= limit

    def _notes(self, header: ImageHeader, where: str) -> list[tuple[str, str, str]]:
        """Return kind, place and detail of what is no reason to leave the image out."""
        notes = []
        if header.orientation is None:
            detail = "its EXIF data can't be read; its rows are used as stored"
            notes.append(("unreadable_exif", where, detail))
        elif header.orientation != 1:
            detail = (
                f"the file has orientation {header.orientation}; its rows are used as stored, as "
                "COCO does, and annotations must be of these"
            )
            notes.append(("orientation", where, detail))
        if header.pages:
            detail = "the file has several pages or frames; the first is used"
            notes.append(("several_pages", where, detail))
        reason = lacks_range(header.values, InputConfig())
        if reason and self._config is None:
            notes.append(("unknown_intensity", where, f"the file holds {reason}"))
        return notes

    def finish(self) -> list[Problem]:
        """Return what the values of all deep images say about the setting."""
        bits, needed = (self._config or InputConfig()).bits, self._fitting_bits()
        if needed is None:
            return []
        settings = " ".join(f"--set {setting}" for setting in self.recommended())
        if needed > bits:
            kind = "clipped_values"
            detail = f"values reach {max(self._highest):,}, too bright for {bits} bits"
        else:
            kind = "few_levels"
            detail = (
                f"values reach {max(self._highest):,} only, {needed} of {bits} bits: the network "
                "sees nearly black images"
            )
        detail += f"; use {settings}, or input.intensity=percentile if brightness varies"
        return [Problem("image", kind, where, detail, kept=True) for where in sorted(self._deep)]

    def recommended(self) -> tuple[str, ...]:
        """Return the settings that fit the values, as `--set` takes them; empty if theirs do."""
        needed = self._fitting_bits()
        if needed is None:
            return ()
        if needed > 16:
            return ("input.intensity=percentile", "input.bits=16")
        return ("input.intensity=bit_depth", f"input.bits={needed}")

    def _fitting_bits(self) -> int | None:
        if not self._highest:
            return None
        return fitting_bits(max(self._highest), self._config or InputConfig())


def _check_size(
    found_hw: tuple[int, int], header: ImageHeader, where: str, hw: tuple[int, int]
) -> Problem | None:
    if found_hw == hw:
        return None
    detail = f"the file is {found_hw[1]}x{found_hw[0]}, the JSON says {hw[1]}x{hw[0]}"
    if found_hw == hw[::-1] and header.orientation in (5, 6, 7, 8):
        detail += "; annotate without the file's EXIF orientation, as COCO does"
    return Problem("image", "image_size_mismatch", where, detail)
