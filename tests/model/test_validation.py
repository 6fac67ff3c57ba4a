import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from polarmask.data.coco import load_coco
from polarmask.errors import DataError, TrainingStopped
from polarmask.evaluation.evaluate import evaluate, evaluate_predictions
from polarmask.inference.model_folder import ModelCard, load_model, read_card
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask
from polarmask.training import operating_score, validation
from polarmask.training.checkpoint import Validated, load_checkpoint
from polarmask.training.train import TrainOptions, train


@pytest.fixture
def options(drawn_data, drawn_labels, tmp_path):
    return TrainOptions(data=drawn_data, out=tmp_path / "run", labels=drawn_labels)


@pytest.fixture
def config(small_config):
    """Six steps, measured after each second one."""
    return replace(small_config, validate_epochs=1)


def measured(run):
    lines = (run / "validation.jsonl").read_text().splitlines()
    return {json.loads(line)["step"]: json.loads(line)["mask_ap"] for line in lines}


@pytest.fixture
def scored(monkeypatch):
    """Give each measurement an AP of our choice, so that the best is known."""
    aps = []
    original = validation.evaluate_together

    def score(predictor, data):
        evaluation, found = original(predictor, data)
        return replace(evaluation, mask_ap=aps.pop(0)), found

    monkeypatch.setattr(validation, "evaluate_together", score)
    return aps


def test_what_is_measured_is_what_evaluate_returns(config, options, drawn_data):
    train(config, options)
    steps = measured(options.out)
    assert list(steps) == [2, 4, 6]
    card = read_card(options.out / "model")
    assert card.training["val_mask_ap"] == max(steps.values())
    again = evaluate(Predictor.load(options.out / "model"), drawn_data).mask_ap
    assert again == pytest.approx(card.training["val_mask_ap"], abs=1e-6)
    assert math.isfinite(again)


def test_the_best_weights_are_kept_and_named(config, options, scored, tmp_path):
    scored += [0.1, 0.5, 0.3]
    train(config, options)
    training = read_card(options.out / "model").training
    assert (training["kept_step"], training["val_mask_ap"], training["steps"]) == (4, 0.5, 6)
    kept, _ = load_model(options.out / "model")
    unmeasured = replace(config, validate_epochs=0)
    train(unmeasured, replace(options, out=tmp_path / "four", stop_after=4))
    average = load_checkpoint(tmp_path / "four" / "checkpoint.pt").average
    for name, weight in kept.state_dict().items():
        assert torch.equal(weight, average[f"module.{name}"]), name


def test_a_finished_model_keeps_the_threshold_of_the_best_f1(
    config, options, monkeypatch, caplog, tmp_path
):
    original = operating_score.evaluate_together

    def evaluated(predictor, data, **options):
        evaluation, found = original(predictor, data, **options)
        some = replace(evaluation.per_image[0], true_positives=2, false_positives=1)
        better = (replace(some, false_negatives=0), *evaluation.per_image[1:])
        return replace(evaluation, per_image=better, operating_score=0.41273), found

    monkeypatch.setattr(operating_score, "evaluate_together", evaluated)
    caplog.set_level("INFO")
    train(replace(config, validate_epochs=0), options)
    assert read_card(options.out / "model").operating_score == 0.412
    assert "shows scores from 0.412: best F1, " in caplog.text
    monkeypatch.setattr(validation, "evaluate_together", evaluated)
    train(config, replace(options, out=tmp_path / "validated"))
    card = read_card(tmp_path / "validated" / "model")
    assert (card.operating_score, "image_side" in card.training) == (0.412, True)


def test_a_model_that_finds_nothing_keeps_no_threshold(drawn_data):
    data = load_coco(drawn_data, "val")
    assert operating_score.operating_score_of(evaluate_predictions(data, {})) is None


def without_the_end(drawn_data, folder, names):
    """Copy a data folder, some of its images truncated."""
    shutil.copytree(drawn_data, folder)
    for path in (folder / "images" / name for name in names):
        path.write_bytes(path.read_bytes()[:-2000])
    return folder


def test_a_threshold_is_chosen_on_the_images_that_can_be_decoded(
    drawn_data, small_config, tmp_path, caplog
):
    caplog.set_level("INFO")
    split = load_coco(drawn_data, "val")
    card = ModelCard(small_config, split.categories)
    detector, names = PolarMask(small_config.model), [image.file_name for image in split.images]
    for number in (1, 3):
        caplog.clear()
        data = without_the_end(drawn_data, tmp_path / str(number), names[:number])
        operating_score.find_operating_score(detector, card, data, torch.device("cpu"))
        assert caplog.text.count("it is not evaluated") == number
        assert f" {3 - number} val images" in caplog.text


def test_measuring_changes_nothing_that_is_learned(config, options, tmp_path):
    train(config, options)
    other = replace(options, out=tmp_path / "other")
    train(replace(config, validate_epochs=0), other)
    with_it = load_checkpoint(options.out / "checkpoint.pt").detector
    without = load_checkpoint(other.out / "checkpoint.pt").detector
    assert all(torch.equal(with_it[name], weight) for name, weight in without.items())


def test_the_best_survives_an_interruption(config, options, scored):
    scored += [0.1, 0.5, 0.3]
    train(config, replace(options, stop_after=5))
    assert load_checkpoint(options.out / "checkpoint.pt").validated == Validated(4, 4, 0.5)
    train(config, options)
    assert measured(options.out) == {2: 0.1, 4: 0.5, 6: 0.3}
    assert read_card(options.out / "model").training["kept_step"] == 4


def test_a_measurement_that_was_cut_short_is_taken_again(config, options, scored, monkeypatch):
    measure = validation.evaluate_together

    def stop(predictor, data):
        raise TrainingStopped("stopped", 15)

    monkeypatch.setattr(validation, "evaluate_together", stop)
    with pytest.raises(TrainingStopped):
        train(config, options)
    assert load_checkpoint(options.out / "checkpoint.pt").step == 2
    monkeypatch.setattr(validation, "evaluate_together", measure)
    scored += [0.4, 0.2, 0.3]
    train(config, options)
    assert measured(options.out) == {2: 0.4, 4: 0.2, 6: 0.3}
    assert read_card(options.out / "model").training["kept_step"] == 2


def test_the_later_weights_win_a_tie(config, options, scored):
    scored += [0.2, 0.2, 0.1]
    train(config, options)
    assert read_card(options.out / "model").training["kept_step"] == 4


def test_images_that_were_left_out_are_not_measured(config, options, drawn_data, tmp_path):
    """A truncated image is found when labels are made, not in the middle of the run."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for path in (drawn_data / "images").iterdir():
        (data / "images" / path.name).write_bytes(path.read_bytes())
    (data / "annotations").symlink_to(drawn_data / "annotations")
    broken = data / "images" / load_coco(data, "val").images[0].file_name
    broken.write_bytes(broken.read_bytes()[:-2000])
    train(config, replace(options, data=data, labels=None))
    assert list(measured(options.out)) == [2, 4, 6]


def test_a_run_that_validates_needs_a_val_split(config, options, drawn_data, tmp_path):
    (tmp_path / "annotations").mkdir()
    name = "annotations/instances_train.json"
    (tmp_path / name).write_bytes((drawn_data / name).read_bytes())
    (tmp_path / "images").symlink_to(drawn_data / "images")
    with pytest.raises(DataError, match=r"instances_val\.json does not exist"):
        train(config, replace(options, data=tmp_path))
