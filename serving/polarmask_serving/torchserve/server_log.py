"""Find in TorchServe's log why something failed; its own answers don't say."""

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

_JAVA_ERROR = re.compile(r"^[\w.$]+(?:Exception|Error): .*", re.MULTILINE)
# Not TorchServe's "RuntimeError: 500 - Unknown exception", which follows the real one.
_PYTHON_ERROR = re.compile(r"^[\w.]*(?:Exception|Error)\b(?!: 50\d - ).*")


def start_error(log: Path) -> str:
    """Return what the front end said before it ended: its last error, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    errors = _JAVA_ERROR.findall(text)
    return str(errors[-1]) if errors else text[text.rfind("\n") + 1 :]


def worker_error(log: Path, model: str, version: str, *, since: int) -> str:
    """Return the last error a version's worker raised after byte `since` of the log, or nothing."""
    with log.open("rb") as file:
        file.seek(since)
        return last_worker_error(file, f"-{model}_{version}-")


def last_worker_error(lines: Iterable[str | bytes], worker: str = "") -> str:
    """Return the last error among lines of the log, or nothing.

    Args:
        lines: Of TorchServe's output; lines that are not its own are passed over.
        worker: What the name of the worker's thread has to hold.
    """
    last = ""
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if worker in entry["thread"] and _PYTHON_ERROR.match(entry["message"]):
                last = entry["message"].strip()
    return last
