"""Calls of git."""

import os
import subprocess
from pathlib import Path

from polarmask_components.errors import NotARepositoryError

_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
"""git must not wait for a password."""


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it fails.

    Raises:
        NotARepositoryError: git is not installed.
    """
    done = run_git("-C", str(folder), *arguments)
    return None if done.returncode else done.stdout.strip()


def run_git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return a finished call of git.

    Raises:
        NotARepositoryError: git is not installed.
    """
    environment = {**os.environ, **_ENVIRONMENT}
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, env=environment
        )
    except FileNotFoundError as error:
        raise NotARepositoryError("git is not installed; install it") from error
