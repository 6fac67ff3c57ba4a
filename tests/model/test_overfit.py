"""Eight real photos learned by heart: no error of a sign, a stride or an axis survives this."""

from dataclasses import replace
from pathlib import Path

import pytest

from polarmask.config.presets import tiny
from polarmask.config.settings import LabelConfig, RunConfig
from polarmask.data.coco import load_coco
from polarmask.evaluation.evaluate import evaluate
from polarmask.evaluation.inspect_data import inspect_data
from polarmask.inference.predictor import Predictor
from polarmask.training.train import TrainOptions, train

PHOTOS = Path(__file__).parents[1] / "data" / "coco_photos"


def small_preset() -> RunConfig:
    """`tiny` with levels for large objects, and nothing that keeps it from learning by heart."""
    run = tiny()
    return replace(
        run,
        model=replace(run.model, strides=(8, 16, 32), channels=64),
        labels=LabelConfig(level_ranges=((0, 64), (64, 128), (128, float("inf")))),
        optim=replace(
            run.optim, epochs=150, batch_size=2, lr_batch_size=2, lr=7e-4, weight_decay=0.0
        ),
        augment="off",
    )


@pytest.mark.slow
def test_eight_photos_are_learned_by_heart(tmp_path):
    config = small_preset()
    bound = inspect_data(load_coco(PHOTOS, "train"), config).evaluation.mask_ap
    assert bound > 0.75  # 36 exact rays from the mass centre, of 34 objects
    model = train(config, TrainOptions(data=PHOTOS, out=tmp_path))
    assert evaluate(Predictor.load(model), PHOTOS, "train").mask_ap >= 0.9 * bound
