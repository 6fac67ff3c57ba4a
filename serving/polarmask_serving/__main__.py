"""Command line: measure engines, pack a model, serve a model on this machine."""

import argparse
import json
import logging
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from polarmask.errors import PolarMaskError
from polarmask.system.command_line import run_command
from polarmask_serving.errors import ArchiveError, ServingError

if TYPE_CHECKING:
    from polarmask.engines.ranking import EngineRanking
    from polarmask_serving.archive.read import Archive
    from polarmask_serving.local_pod import LocalPod

_ON_ERROR: dict[str, Any] = {
    "prefix": "error",
    "errors": (PolarMaskError, ServingError, OSError),
}
_SERVE = "serve a model on 127.0.0.1 until Ctrl-C, with a page to try it"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PROBE_SECONDS = 1.0
_PROBE_FAILURES = 5


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 2 for an error of the user, in one line."""
    return run_command(lambda: _run(build_parser().parse_args(arguments)), **_ON_ERROR)


def serve(arguments: Sequence[str], *, prog: str) -> int:
    """Serve a model: the entry point `serve` of `polarmask.programs`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_SERVE, epilog=f"example: {prog} runs/first"
    )
    _add_serving(parser)
    options = parser.parse_args(arguments, argparse.Namespace(command="serve"))
    return run_command(lambda: _run(options), **_ON_ERROR)


def _run(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.command == "archive":
        _archive(options)
    elif options.command == "measure":
        _write_measured(options)
    else:
        _serve(options.model, options.port)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from polarmask.system.argument_types import output_file

    parser = argparse.ArgumentParser(prog="polarmask_serving", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    archive = commands.add_parser(
        "archive",
        help="pack a model folder into a TorchServe archive",
        epilog="example: python -m polarmask_serving archive --model runs/first/model "
        "--out model.mar --version 1",
    )
    archive.add_argument("--model", type=Path, required=True, help="model folder, RUN/model")
    archive.add_argument("--out", type=output_file(".mar"), required=True, help="the .mar to write")
    archive.add_argument("--name", default="polarmask", help="model name in URLs (polarmask)")
    archive.add_argument("--version", required=True, help="model version in URLs")
    archive.add_argument(
        "--engines",
        type=Path,
        help="report of `measure` for this model (without: the engines are measured first)",
    )
    archive.add_argument(
        "--metrics", type=Path, help="evaluation.json of `polarmask evaluate`, to be kept in it"
    )
    _add_measuring(archive)

    measure = commands.add_parser(
        "measure",
        help="try all engines on a model; write which are safe and how fast they are",
        epilog="example: python -m polarmask_serving measure --model runs/first/model "
        "--data data --out engines.json",
    )
    measure.add_argument("--model", type=Path, required=True, help="model folder, RUN/model")
    measure.add_argument(
        "--out", type=output_file(".json"), required=True, help="the report to write"
    )
    _add_measuring(measure)

    _add_serving(
        commands.add_parser(
            "serve", help=_SERVE, epilog="example: python -m polarmask_serving serve runs/first"
        )
    )
    return parser


def _add_serving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="run folder, model folder or archive (.mar)"
    )
    parser.add_argument("--port", type=_port, default=8080, help="of page and predictions (8080)")


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    from polarmask.system.argument_types import at_least

    parser.add_argument(
        "--data",
        type=Path,
        help="COCO folder: engines below float32 have to keep mask AP on its val split "
        "(without: they are no candidates)",
    )
    parser.add_argument(
        "--images",
        type=at_least(1),
        default=32,
        help="of the val split, the first ones (32)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")


def _archive(options: argparse.Namespace) -> None:
    from polarmask.engines.ranking import read_ranking
    from polarmask_serving.archive.build import build_archive

    report = read_ranking(options.engines) if options.engines else _measure(options)
    archive = build_archive(
        options.model,
        options.out,
        name=options.name,
        version=options.version,
        engines=report,
        metrics=_read_metrics(options.metrics) if options.metrics else None,
    )
    print(f"{archive.path} sha256:{archive.sha256}")


def _read_metrics(path: Path) -> dict[str, float]:
    """Return the numbers of an evaluation; what the split has no objects for is left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in content.items() if type(value) in (int, float)}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ArchiveError(
            f"{path} is no evaluation ({error}); `polarmask evaluate` writes evaluation.json"
        ) from error


def _write_measured(options: argparse.Namespace) -> None:
    from polarmask.report.engines import engines_page
    from polarmask.report.index import add_page
    from polarmask.system.files import write_text
    from polarmask.training.run_folder import run_folder_of

    measured = _measure(options)
    write_text(options.out, measured.to_json())
    print(options.out)
    if run := run_folder_of(options.model):
        page = engines_page(measured, provenance={"model": str(options.model)})
        print(add_page(run, "engines.html", page))


def _measure(options: argparse.Namespace) -> "EngineRanking":
    """Measure as a worker computes: on one thread."""
    import torch

    from polarmask.evaluation.measure_engines import measure_engines, ranking_table

    torch.set_num_threads(1)
    report = measure_engines(
        options.model, data=options.data, device=options.device, max_images=options.images
    )
    print(ranking_table(report))
    return report


def _serve(model: Path, port: int) -> None:
    """Serve one model from a folder that is removed with the process."""
    from polarmask_serving.archive.build import build_archive
    from polarmask_serving.archive.read import read_archive
    from polarmask_serving.local_pod import LocalPod, check_port

    check_port(port)  # before the work: the archive takes seconds
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and `&` ignore some
            signal.signal(number, _stop)
    try:
        with tempfile.TemporaryDirectory(prefix="polarmask-serve-") as folder:
            if model.suffix == ".mar":
                archive = read_archive(model)
            else:
                out = Path(folder) / "model.mar"
                archive = build_archive(_of_run(model), out, name="polarmask", version="1")
            pod = LocalPod.prepare(archive, Path(folder), port=port)
            try:
                pod.launch(archive, alone=True)
                print(f"ready: {pod.page}  (Ctrl-C stops it)")
                print(f"  curl -F image=@IMAGE.png {pod.url}", flush=True)
                _keep_alive(pod, archive)
            finally:
                pod.stop(drain_seconds=0)
    except KeyboardInterrupt:
        print("stopped")


def _of_run(folder: Path) -> Path:
    """Return the model folder of a run folder; another folder as it is."""
    from polarmask.inference.model_folder import is_model_folder

    return folder / "model" if is_model_folder(folder / "model") else folder


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt once: a second signal must not stop the clean-up."""
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def _keep_alive(pod: "LocalPod", archive: "Archive") -> NoReturn:
    """Restart the pod whenever it does not work any more, as a cluster does."""
    failures = 0
    while True:
        time.sleep(_PROBE_SECONDS)
        failures = 0 if pod.is_alive() else failures + 1
        if failures == _PROBE_FAILURES:
            print("TorchServe or its proxy does not work any more: restarting", file=sys.stderr)
            pod.restart(archive)
            failures = 0


if __name__ == "__main__":
    sys.exit(main())
