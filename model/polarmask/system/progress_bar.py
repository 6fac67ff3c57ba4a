"""Progress bars: on terminals only, after two seconds, and not with `-q`."""

import logging
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    unit_scale: bool = False,
    delay: float = 2,
    shown: bool = True,
) -> "tqdm[Any]":
    """Return a bar over the items, or one to be updated; most arguments are those of tqdm.

    Args:
        items: What to go through.
        desc: What is being done.
        unit: Of the count.
        total: Count at the end; None asks the items.
        initial: Count at the start.
        unit_scale: Write 1.2M for 1,200,000.
        delay: Seconds until it is shown.
        shown: False shows nothing, as on all processes but the first.
    """
    is_quiet = logging.getLogger("polarmask").level >= logging.WARNING
    return tqdm(
        items,
        desc=desc,
        unit=unit,
        total=total,
        initial=initial,
        unit_scale=unit_scale,
        delay=delay,
        disable=None if shown and not is_quiet else True,  # None: where there is no terminal
    )
