"""Names of models and versions: parts of URLs and of file names."""

import re

from polarmask_serving.errors import ArchiveError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_url_name(what: str, value: str) -> None:
    """Raise ArchiveError, which names what it is the value of, unless it fits into a URL."""
    if not _NAME.fullmatch(value):
        raise ArchiveError(f"{what} {value!r} fits no URL: use letters, digits, '.', '_', '-'")
