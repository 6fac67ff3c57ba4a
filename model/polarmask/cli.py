"""Command line: what `polarmask` reads; `commands` does the work."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from polarmask.commands import dispatch as do
from polarmask.config.presets import PRESETS
from polarmask.errors import PolarMaskError, TrainingStopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 for what the user can mend, or 128 + n when signal n stopped training.
    """
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.run(options)
    except (PolarMaskError, OSError) as error:
        print(f"polarmask {options.command}: {error}", file=sys.stderr)
        return 128 + error.signal_number if isinstance(error, TrainingStopped) else 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="polarmask", description="train, judge and try PolarMask on COCO-format data"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_presets,
        _add_inspect,
        _add_precompute,
        _add_train,
        _add_evaluate,
        _add_predict,
        _add_visualize,
        _add_import,
    ):
        add(commands)
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    what: str,
    example: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=what,
        description=what,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_config_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preset",
        default="coco-r50-1x",
        metavar="PRESET",
        help=f"config name: {', '.join(sorted(PRESETS))} (default: coco-r50-1x)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="change one setting of the preset; may be repeated",
    )


def _add_data_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with images/ and annotations/instances_{train,val}.json",
    )


def _add_device_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    command.add_argument(
        "--threads", type=_at_least(1), help="CPU threads per process (default: torch's choice)"
    )


def _at_least(lowest: int) -> Callable[[str], int]:
    """Return a reader of whole numbers for argparse, which shows its error and the flag."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {lowest}")
        return number

    return read


def _add_inspect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "inspect",
        "look at data before training: sizes, levels, upper bounds, what to set",
        "polarmask inspect data --preset tiny --out runs/inspection",
    )
    command.add_argument(
        "data", type=Path, help="folder with images/ and annotations/instances_{train,val}.json"
    )
    command.add_argument("--split", default="train", help="which annotations (default: train)")
    _add_config_flags(command)
    command.add_argument(
        "--max-images", type=_at_least(1), default=2000, help="look at so many (default: 2000)"
    )
    command.add_argument("--out", type=Path, help="folder for inspection.html and worst.jpg")
    command.set_defaults(run=do.run_inspect)


def _add_precompute(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "precompute",
        "check the data and make its ray labels; goes on where it was interrupted",
        "polarmask precompute --preset tiny --data data --out runs/labels",
    )
    _add_data_flag(command)
    command.add_argument("--out", type=Path, required=True, help="label store folder")
    _add_config_flags(command)
    command.add_argument(
        "--workers", type=_at_least(0), default=0, help="processes (default: this one)"
    )
    command.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda shares this machine's GPUs out to the workers (default: cpu)",
    )
    command.add_argument(
        "--shard",
        type=_share,
        metavar="I/N",
        help="make only the I-th of N machines' share; a run without it finishes the store",
    )
    command.add_argument(
        "--made",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders with shares made elsewhere, taken over where whole",
    )
    command.set_defaults(run=do.run_precompute)


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give 1/4 to 4/4 for four machines")
    return int(number), int(of)


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "train",
        "train a model; resumes if the run folder holds a checkpoint",
        "torchrun --nproc-per-node 2 -m polarmask train --preset tiny --data data --out runs/first",
    )
    _add_data_flag(command)
    command.add_argument("--out", type=Path, required=True, help="run folder; resumes if not empty")
    command.add_argument(
        "--labels", type=Path, help="label store (default: made in the run folder)"
    )
    _add_config_flags(command)
    _add_device_flags(command)
    command.add_argument(
        "--loader-workers",
        type=_at_least(0),
        default=0,
        help="loader processes per process (default: 0)",
    )
    command.add_argument(
        "--images-per-process",
        type=_at_least(1),
        metavar="N",
        help="batch size as N times the processes (default: optim.batch_size shared among them)",
    )
    command.add_argument(
        "--passes",
        type=_at_least(1),
        default=1,
        help="batches that a process takes its share of a step in, to save memory (default: 1)",
    )
    command.add_argument(
        "--compile", action="store_true", help="translate the network with torch.compile first"
    )
    command.add_argument(
        "--deterministic", action="store_true", help="same bits on every run; slower on CUDA"
    )
    command.add_argument(
        "--tensorboard", action="store_true", help="write curves and pictures to OUT/tensorboard"
    )
    command.add_argument(
        "--backbone-weights",
        metavar="FILE|URL|NAME",
        help="start from a state dict file, its URL or a torchvision name (default: the preset's)",
    )
    command.add_argument(
        "--provenance",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="fact to keep in the model, such as data_commit=3f2a1bc; may be repeated",
    )
    command.set_defaults(run=do.run_train)


def _add_presets(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "presets",
        "list the known runs and what is published about them",
        "polarmask presets",
    )
    command.set_defaults(run=do.run_presets)


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "import-original",
        "make a model folder from a checkpoint of the paper's code",
        "polarmask import-original polarmask_r50.pth --out runs/released",
    )
    command.add_argument("checkpoint", type=Path, help="file that the paper's code wrote")
    command.add_argument("--out", type=Path, required=True, help="model folder to write")
    command.add_argument(
        "--preset", metavar="PRESET", help="run that it is from (default: 1x of its network)"
    )
    command.add_argument(
        "--ray-order",
        choices=["auto", "new", "old"],
        default="auto",
        help="old before 2019-11-12; auto asks the data, or else the checkpoint (default: auto)",
    )
    command.add_argument(
        "--data", type=Path, help="COCO folder for categories and ray order (default: COCO's 80)"
    )
    command.set_defaults(run=do.run_import_original)


def _add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "evaluate",
        "measure COCO mask AP",
        "polarmask evaluate --model runs/first/model --data data --out runs/first/report",
    )
    command.add_argument("--model", type=Path, required=True, help="model folder")
    _add_data_flag(command)
    command.add_argument("--split", default="val", help="which annotations (default: val)")
    _add_device_flags(command)
    command.add_argument("--out", type=Path, help="folder for evaluation.json and report.html")
    command.set_defaults(run=do.run_evaluate)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "predict",
        "find instances in images and write them as JSON",
        "polarmask predict --model runs/first/model --out predictions.json data/images",
    )
    command.add_argument("--out", type=Path, required=True, help="JSON file to write")
    _add_finder_flags(command)
    command.set_defaults(run=do.run_predict)


def _add_visualize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(
        commands,
        "visualize",
        "draw what a model finds in images, and a sheet of them",
        "polarmask visualize --model runs/first/model --rays --out runs/overlays data/images",
    )
    command.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    command.add_argument("--rays", action="store_true", help="draw centres and rays, too")
    _add_finder_flags(command)
    command.set_defaults(run=do.run_visualize)


def _add_finder_flags(command: argparse.ArgumentParser) -> None:
    finder = command.add_mutually_exclusive_group(required=True)
    finder.add_argument(
        "--model", metavar="MODEL", help="model folder, run folder, checkpoint.pt or .mar"
    )
    finder.add_argument(
        "--url", help="of a server, such as http://127.0.0.1:8080/predictions/polarmask"
    )
    command.add_argument(
        "--token-file", type=Path, metavar="FILE", help="holds the token that the server wants"
    )
    _add_device_flags(command)
    command.add_argument("--score", type=float, default=0.3, help="lowest score (default: 0.3)")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files or folders")
