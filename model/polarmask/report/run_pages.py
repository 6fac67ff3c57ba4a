"""The pages of a run folder: data and labels when a training begins, its curves as it goes on."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData
from polarmask.labels.store import LabelStore
from polarmask.report.data import data_page
from polarmask.report.index import add_page
from polarmask.report.labels import labels_page
from polarmask.report.training import training_page

logger = logging.getLogger(__name__)


class RunPages:
    """Writes `data.html`, `labels.html` and `training.html`, and `index.html` that links them.

    An `Observer` of training. A page that can't be rendered or written is a warning: the training
    is worth more than its pages.
    """

    def __init__(self, run: Path, provenance: dict[str, str]) -> None:
        self._run = run
        self._provenance = provenance

    def begin(self, data: Sequence[CocoData], labels: LabelStore, config: RunConfig) -> None:
        """Write the pages of what the run learns from."""
        splits = {each.split: each for each in data}
        facts = {"data": str(data[0].root)} | self._provenance
        self._add("data.html", lambda: data_page(splits, provenance=facts))
        self._add(
            "labels.html", lambda: labels_page(labels, splits, config=config, provenance=facts)
        )
        self.update()

    def update(self) -> None:
        """Write the page of the training."""
        self._add("training.html", lambda: training_page(self._run))

    def _add(self, name: str, page: Callable[[], str]) -> None:
        try:
            add_page(self._run, name, page())
        except Exception as error:  # whatever it is, the training goes on
            logger.warning(
                "the page %s could not be written (%s: %s); the training goes on without it",
                self._run / name,
                type(error).__name__,
                error,
            )
