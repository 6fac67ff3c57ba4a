"""The pages of a run folder: data and labels when a training begins, its curves as it goes on."""

from collections.abc import Sequence
from pathlib import Path

from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData
from polarmask.labels.store import LabelStore
from polarmask.report.data import data_page
from polarmask.report.index import add_page
from polarmask.report.labels import labels_page
from polarmask.report.training import training_page


class RunPages:
    """Writes `data.html`, `labels.html` and `training.html`, and `index.html` that links them.

    An `Observer` of training.
    """

    def __init__(self, run: Path, provenance: dict[str, str]) -> None:
        self._run = run
        self._provenance = provenance

    def begin(self, data: Sequence[CocoData], labels: LabelStore, config: RunConfig) -> None:
        """Write the pages of what the run learns from."""
        splits = {each.split: each for each in data}
        facts = {"data": str(data[0].root)} | self._provenance
        add_page(self._run, "data.html", data_page(splits, provenance=facts))
        page = labels_page(labels, splits, config=config, provenance=facts)
        add_page(self._run, "labels.html", page)
        self.update()

    def update(self) -> None:
        """Write the page of the training."""
        add_page(self._run, "training.html", training_page(self._run))
