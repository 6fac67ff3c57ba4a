"""Downloaded files: whole and verified, or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polarmask.system.files import sha256_of_file
from polarmask_components.errors import DamagedObjectError


@contextmanager
def verified(path: Path, sha256: str | None, *, where: str) -> Iterator[None]:
    """Keep the file that the block writes only if it has this hash; its folder is made.

    Args:
        path: The file.
        sha256: Hex digest; None accepts any content.
        where: Where it comes from, for the error.

    Raises:
        DamagedObjectError: It has another hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
        found = None if sha256 is None else sha256_of_file(path)
        if found != sha256:
            raise DamagedObjectError(
                f"{where} is not what was stored: {path.stat().st_size} bytes with sha256 {found}, "
                f"not {sha256}"
            )
    except BaseException:  # a signal, too, leaves no half file
        path.unlink(missing_ok=True)
        raise
