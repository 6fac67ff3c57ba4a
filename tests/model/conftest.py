"""A drawn data set and a network small enough to train in seconds."""

from dataclasses import replace

import pytest

from factories import make_tiny_coco
from polarmask.config.presets import tiny
from polarmask.config.settings import ModelConfig, RunConfig
from polarmask.labels.precompute import precompute


@pytest.fixture(scope="session")
def small_config() -> RunConfig:
    run = tiny()
    return replace(
        run,
        model=replace(run.model, channels=32, tower_depth=1, num_classes=3),
        # In float32 wherever the tests run: sums in another order must come out alike.
        optim=replace(run.optim, batch_size=4, epochs=3, warmup_steps=2, amp="off"),
    )


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory):
    return make_tiny_coco(tmp_path_factory.mktemp("drawn"), images=8, val_images=3)


@pytest.fixture(scope="session")
def drawn_labels(tmp_path_factory, drawn_data, small_config):
    folder = tmp_path_factory.mktemp("labels")
    precompute(drawn_data, folder, small_config)
    return folder


@pytest.fixture(scope="session")
def box_model() -> ModelConfig:
    return ModelConfig(backbone="resnet18", channels=32, tower_depth=1, strides=(8, 16, 32, 64))
