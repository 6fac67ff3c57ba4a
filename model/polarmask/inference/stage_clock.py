"""Time per stage of a prediction."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up seconds by stage. On CUDA a stage ends when its work is queued, not when it is done.

    Args:
        limit: Seconds of all stages together after which none begins any more; None for no limit.

    Attributes:
        seconds: By stage, in the order of first use.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._limit = limit

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage, even if the block fails.

        Raises:
            TimeoutError: The stages before took longer than the limit.
        """
        spent = sum(self.seconds.values())
        if self._limit is not None and spent > self._limit:
            raise TimeoutError(f"{spent:.0f} s, more than {self._limit:g} s")
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started
