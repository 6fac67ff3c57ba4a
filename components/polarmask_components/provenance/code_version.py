"""Which code runs: a hash of what is installed, and the commit it came from if that is known."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from polarmask_components.errors import NotARepositoryError
from polarmask_components.provenance.git import git

PACKAGES = ("polarmask", "polarmask_components")
"""What results depend on: pipelines only feed steps, and servers come after them."""
_DIGITS = 16


def code_version() -> str:
    """Return a hash over the files of our packages that compute.

    Part of every cached step's inputs: an edit, committed or not, makes the step run again.
    """
    whole = hashlib.sha256()
    for root in _roots():
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                whole.update(
                    f"{root.name}/{path.relative_to(root).as_posix()}\0{digest}\n".encode()
                )
    return whole.hexdigest()[:_DIGITS]


def code_commit() -> str:
    """Return the checkout's commit, with `-dirty` after uncommitted changes; "" if unknown."""
    roots = _roots()
    try:
        # A wheel in an environment inside some checkout did not come from that checkout.
        if not git(roots[0], "ls-files", "--", "__init__.py"):
            return ""
        changed = git(roots[0], "status", "--porcelain", "--", *map(str, roots))
        return (git(roots[0], "rev-parse", "HEAD") or "") + ("-dirty" if changed else "")
    except NotARepositoryError:
        return ""


def _roots() -> list[Path]:
    """Return the folders of our packages that are installed: an image need not hold them all."""
    specs = [find_spec(package) for package in PACKAGES]
    return [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]
