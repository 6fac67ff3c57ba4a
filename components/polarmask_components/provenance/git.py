"""Calls of git."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from polarmask_components.errors import NotARepositoryError

SECONDS = 600.0
"""For a call; clones include data that lies in the repository."""
SECONDS_TO_ANSWER = 60.0
"""For a server to name its revisions."""
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
"""git must not wait for a password."""
_DEFAULTS = {"GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "60"}
"""A server that sends fewer bytes per second for so many seconds counts as gone."""
_OF_THE_USER = re.compile(
    "GIT_(SSH|SSL|HTTP|CURL|PROXY|ASKPASS|TRACE|EXEC_PATH|ALLOW_PROTOCOL"
    "|CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY|VALUE))"
)
"""Variables that say how to reach servers; hooks set others, which lead to their repository."""


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it fails.

    Raises:
        NotARepositoryError: git is not installed.
    """
    done = run_git("-C", str(folder), *arguments)
    return None if done.returncode else done.stdout.strip()


def run_git(*arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Return a finished call of git, which knows nothing of the repository that we are called in.

    Args:
        arguments: Of git.
        seconds: How long it may take; None for `SECONDS`.

    Raises:
        NotARepositoryError: git is not installed, or does not end in time.
    """
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or _OF_THE_USER.match(name)
    }
    try:
        process = subprocess.Popen(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",  # files and messages of servers may be in any encoding
            env={**_DEFAULTS, **clean, **_ENVIRONMENT},
            start_new_session=True,  # to end the programs that it starts, too
        )
    except FileNotFoundError as error:
        raise NotARepositoryError("git is not installed; install it") from error
    seconds = seconds or SECONDS
    with process:
        try:
            out, errors = process.communicate(timeout=seconds)
        except BaseException as error:  # Ctrl-C, too, ends the programs of git
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NotARepositoryError(
                    f"git did not end within {seconds:.0f} s: {' '.join(arguments)}; check that "
                    "the server answers"
                ) from error
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, errors)
