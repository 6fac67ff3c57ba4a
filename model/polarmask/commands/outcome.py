"""What a command returns."""

from collections.abc import Sequence
from dataclasses import dataclass

from polarmask.data.summary import SplitSummary


@dataclass(frozen=True)
class Outcome:
    """Result of a command; the command line prints the summaries."""

    data: Sequence[SplitSummary]
    """Of the data that it used, with what was left out; empty if it used none."""
    exit_code: int = 0
