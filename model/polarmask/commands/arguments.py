"""Command-line arguments that several commands share, and what they mean."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polarmask.commands.outcome import Outcome
from polarmask.config.input_settings import InputConfig
from polarmask.config.overrides import override
from polarmask.config.presets import AUTO, preset_names
from polarmask.config.settings import RunConfig
from polarmask.data.summary import Problem, summary_of_files
from polarmask.errors import DataError
from polarmask.system.argument_types import at_least, between

if TYPE_CHECKING:
    from polarmask.inference.image_files import Finder, Looked
    from polarmask.inference.tiles import TileSize


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--preset` and `--set`; `config_of` reads them."""
    parser.add_argument(
        "--preset",
        metavar="PRESET",
        help=f"config name: {', '.join(preset_names())} (default: {AUTO}, which fits the data)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="change one setting of the preset (`polarmask settings` lists all); may be repeated",
    )


def config_of(options: argparse.Namespace, *, like: RunConfig | None = None) -> RunConfig:
    """Return the preset with every `--set` applied; without `--preset` that of another run.

    Raises:
        ConfigError: Unknown preset or setting, or a value that can't work.
        DataError: The preset that fits the data is wanted, and there is no usable data.
    """
    from polarmask.evaluation.auto_preset import preset_for

    base = like if like and options.preset is None else preset_for(options.preset, options.data)
    return override(base, options.set)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--data`."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with images/ and annotations/instances_{train,val}.json",
    )


def add_strict_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--strict`."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse data of which an image or object is left out"
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--threads`."""
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument(
        "--threads", type=at_least(1), help="CPU threads per process (default: torch's choice)"
    )


def add_max_pixels_argument(parser: argparse.ArgumentParser, *, default: int | None) -> None:
    """Add `--max-pixels`; without a default the model's setting counts."""
    text = "the model's input.max_pixels" if default is None else f"{default:,}"
    parser.add_argument(
        "--max-pixels",
        type=at_least(1),
        default=default,
        metavar="N",
        help=f"refuse images with more pixels, before they are decoded (default: {text})",
    )


def add_tile_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--tile`."""
    parser.add_argument(
        "--tile",
        type=tile_size,
        default="auto",
        metavar="PIXELS",
        help="side of the overlapping tiles of large images; auto: that of the training images, "
        "for images much larger than those; none: no tiles (default: auto)",
    )


def tile_size(text: str) -> "TileSize":
    """Read `--tile`."""
    return {"auto": "auto", "none": None}[text] if text in ("auto", "none") else at_least(64)(text)


def add_finder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `predict` and `visualize` share: a model or server, a score, image files."""
    finder = parser.add_mutually_exclusive_group(required=True)
    finder.add_argument(
        "--model", metavar="MODEL", help="model folder, run folder, checkpoint.pt or .mar"
    )
    finder.add_argument(
        "--url", help="of a server, such as http://127.0.0.1:8080/predictions/polarmask"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with the server's access token"
    )
    add_device_arguments(parser)
    add_tile_argument(parser)
    parser.add_argument(
        "--score",
        type=between(0, 1),
        metavar="SCORE",
        help="lowest score, 0 to 1 (default: the model's own, of the best F1 on its val split)",
    )
    add_max_pixels_argument(parser, default=InputConfig.max_pixels)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files or folders")


def finder_of(options: argparse.Namespace) -> "Finder":
    """Open the model or the server that the arguments name.

    Raises:
        DataError: Arguments that exclude each other, or no client for the server.
        ModelFormatError, CheckpointError: The model can't be used.
    """
    from polarmask.model_sources.open_model import open_model, open_server

    if options.url:
        if options.device or options.threads or isinstance(options.tile, int):
            raise DataError(
                "--device, --threads and the side of tiles are for --model; a server has its own"
            )
        token = _read_token(options.token_file) if options.token_file else None
        return open_server(options.url, token=token, in_tiles=options.tile is not None)
    if options.token_file:
        raise DataError("--token-file is for --url")
    return open_model(
        options.model, device=options.device, threads=options.threads, tile=options.tile
    )


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds no token: it is no text") from error


def print_counts(looked: "Looked") -> None:
    """Print how many instances each image has."""
    for path, count in looked.counts.items():
        print(f"{path}: {count} instances")


def outcome_of(looked: "Looked") -> Outcome:
    """Print which images failed and why; the exit code is 1 if any did."""
    problems = [Problem("image", "failed", path, text) for path, text in looked.failed.items()]
    problems += [
        Problem("image", kind, path, text, kept=True)
        for path, warnings in looked.warnings.items()
        for kind, text in warnings.items()
    ]
    _print_failed(looked)
    summary = summary_of_files(len(looked.counts) + len(looked.failed), problems)
    return Outcome([summary], exit_code=1 if looked.failed else 0)


def _print_failed(looked: "Looked") -> None:
    if not looked.failed:
        return
    total = len(looked.counts) + len(looked.failed)
    lines = [
        f"{path}: {reason}".replace(f"{path}: {path}", path)
        for path, reason in looked.failed.items()
    ]
    print(f"{len(looked.failed)} of {total} images failed:", *lines, sep="\n  ", file=sys.stderr)
