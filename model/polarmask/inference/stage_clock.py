"""Time per stage of a prediction."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up seconds by stage. On CUDA a stage ends when its work is queued, not when it is done.

    Args:
        limit: Seconds of all stages together after which none begins any more, and `check` fails;
            None for no limit.

    Attributes:
        seconds: By stage, in the order of first use.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._limit = limit
        self._began: float | None = None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage, even if the block fails.

        Raises:
            TimeoutError: The stages before took longer than the limit.
        """
        self.check()
        self._began = began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began
            self._began = None

    def check(self) -> None:
        """Fail if the limit is passed; long stages call it as they go.

        Raises:
            TimeoutError: All stages, with the current one, took longer than the limit.
        """
        if self._limit is None:
            return
        spent = sum(self.seconds.values())
        if self._began is not None:
            spent += time.perf_counter() - self._began
        if spent > self._limit:
            raise TimeoutError(f"{spent:.0f} s, more than {self._limit:g} s")
