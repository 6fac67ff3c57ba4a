"""Find in TorchServe's log why something failed; its answers give no reason."""

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

_JAVA_ERROR = re.compile(r"^[\w.$]+(?:Exception|Error): .*", re.MULTILINE)
# Not TorchServe's "RuntimeError: 500 - Unknown exception", which follows the real one.
_PYTHON_ERROR = re.compile(r"^[\w.]*(?:Exception|Error)\b(?!: 50\d - ).*")


def start_error(log: Path) -> str:
    """Return why the front end ended: its last error in the log, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    errors = _JAVA_ERROR.findall(text)
    return str(errors[-1]) if errors else text[text.rfind("\n") + 1 :]


def last_worker_error(lines: Iterable[str | bytes]) -> str:
    """Return the last error of a worker among lines of TorchServe's log, or nothing."""
    last = ""
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["thread"] and _PYTHON_ERROR.match(entry["message"]):
                last = entry["message"].strip()
    return last
