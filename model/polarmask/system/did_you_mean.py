"""A hint for mistyped names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the known name whose last part is closest to the word's."""
    names = {_last(name): name for name in known}
    close = get_close_matches(_last(word), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]
