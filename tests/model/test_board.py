import sys
from dataclasses import replace

import pytest

from polarmask.errors import ConfigError
from polarmask.training.train import TrainOptions, train


def read_board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_curves_and_pictures_of_a_run(small_config, drawn_data, drawn_labels, tmp_path):
    config = replace(small_config, validate_epochs=1)
    options = TrainOptions(data=drawn_data, labels=drawn_labels, out=tmp_path, tensorboard=True)
    train(config, replace(options, stop_after=3))
    train(config, options)
    events = read_board(tmp_path / "tensorboard")
    tags = events.Tags()
    assert {"train/loss", "train/ray", "train/lr", "val/mask_ap"} <= set(tags["scalars"])
    assert set(tags["images"]) == {"train/targets", "val/found"}
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("val/mask_ap")] == [2, 4, 6]
    for tag in tags["images"]:
        picture = events.Images(tag)[0]
        assert min(picture.width, picture.height) > 400
        assert len(picture.encoded_image_string) > 10_000


def test_without_the_package_the_flag_says_what_to_install(
    small_config, drawn_data, drawn_labels, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    options = TrainOptions(data=drawn_data, labels=drawn_labels, out=tmp_path, tensorboard=True)
    with pytest.raises(ConfigError, match=r"pip install 'polarmask-k8s\[tensorboard\]'"):
        train(small_config, options)
