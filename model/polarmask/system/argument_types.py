"""Types of command-line arguments: numbers in a range, and places that can be written."""

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path


def at_least(lowest: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `lowest` on."""

    def read(text: str) -> int:
        if not re.fullmatch("-?[0-9]+", text) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}")
        return int(text)

    return read


def between(lowest: float, highest: float) -> Callable[[str], float]:
    """Return an argparse type for numbers in a range, ends included."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not lowest <= number <= highest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number from {lowest:g} to {highest:g}"
            )
        return number

    return read


def output_file(suffix: str) -> Callable[[str], Path]:
    """Return an argparse type for files to write, of this suffix or without one."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in ("", suffix):
            raise argparse.ArgumentTypeError(
                f"{text} would hold {suffix[1:].upper()}; give a name that ends in {suffix}"
            )
        if path.exists() and not path.is_file():
            raise argparse.ArgumentTypeError(f"{text} exists and is no file; name a file")
        return _writable(path.resolve() if path.is_symlink() else path)

    return read


def output_folder(text: str) -> Path:
    """Return a folder to write, as an argparse type; it need not exist."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a folder")
    return _writable(path)


def _writable(path: Path) -> Path:
    """Return a path that can be written, as far as its folder shows before hours of work."""
    whole = path.absolute()
    folder = whole if path.is_dir() else next(each for each in whole.parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path}: {folder} is no folder that can be written to")
    return path
