"""Find in TorchServe's log why something failed; its own answers don't say."""

import contextlib
import json
import re
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
    last = ""
    with log.open("rb") as file:
        file.seek(since)
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                ours = f"-{model}_{version}-" in entry["thread"]
                if ours and _PYTHON_ERROR.match(entry["message"]):
                    last = entry["message"].strip()
    return last
