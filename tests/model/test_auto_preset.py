"""`--preset auto`: a run that fits the data, the same for labels and training."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import polarmask
from factories import make_tiny_coco
from polarmask.cli import main
from polarmask.config.overrides import differences, override
from polarmask.config.presets import AUTO, preset, tiny
from polarmask.config.settings import from_dict
from polarmask.data.coco import load_coco
from polarmask.errors import ConfigError
from polarmask.evaluation.auto_preset import fit, preset_for
from polarmask.evaluation.recommend import recommend_for
from polarmask.inference.model_folder import read_card

SMALL = ["model.channels=32", "model.tower_depth=1", "optim.epochs=1"]


def flags(*settings):
    return [flag for setting in settings for flag in ("--set", setting)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tiny_coco(tmp_path_factory.mktemp("auto"), images=6, val_images=2)


def test_labels_made_without_a_preset_serve_a_training_without_one(data, tmp_path):
    labels, out = tmp_path / "labels", tmp_path / "run"
    assert main(["precompute", "--data", str(data), "--out", str(labels)]) == 0
    given = ["--data", str(data), "--labels", str(labels), "--out", str(out)]
    assert main(["train", *given, *flags(*SMALL)]) == 0
    kept = from_dict(json.loads((out / "config.json").read_text()))
    auto = override(preset_for(AUTO, data), SMALL)
    assert kept == replace(auto, model=replace(auto.model, num_classes=kept.model.num_classes))
    assert (kept.name, kept.backbone_weights) == (AUTO, None)


def test_inspect_recommends_what_auto_has(data, capsys):
    assert main(["inspect", str(data)]) == 0
    printed = capsys.readouterr().out
    auto = preset_for(AUTO, data)
    assert recommend_for(load_coco(data, "train"), auto).apply(auto) == auto
    assert f"model.num_rays={auto.model.num_rays}" in printed
    assert f"{auto.optim.epochs:g} epochs of 6 images" in printed


def test_few_images_are_seen_more_often(data):
    loaded = load_coco(data, "train")
    few, many = fit(loaded), fit(replace(loaded, images=tuple(loaded.images) * 100))
    steps = [
        round(run.optim.epochs * n / run.optim.batch_size) for run, n in ((few, 6), (many, 600))
    ]
    assert few.optim.epochs > many.optim.epochs >= 3
    assert all(step >= 300 for step in steps)


def enlarged(image, factor):
    """Return a record of an image, and of its objects, of another size; outlines stay."""
    objects = tuple(
        replace(each, area=each.area * factor**2, bbox=tuple(n * factor for n in each.bbox))
        for each in image.annotations
    )
    width, height = image.width * factor, image.height * factor
    return replace(image, width=width, height=height, annotations=objects)


def test_images_of_large_objects_are_shrunk_and_others_are_not(data):
    loaded = load_coco(data, "train")
    large = [enlarged(image, 40) for image in loaded.images]
    assert fit(loaded).input.max_side == 1024 > max(image.width for image in loaded.images)
    assert fit(replace(loaded, images=tuple(large))).input.max_side == 256


def test_crowded_images_raise_the_limit_of_instances(data):
    loaded = load_coco(data, "train")
    first = loaded.images[0]
    crowded = replace(first, annotations=first.annotations[:1] * 700)
    run = fit(replace(loaded, images=(crowded, *loaded.images)))
    assert run.postprocess.max_instances == 1400
    assert run.postprocess.pre_nms_top_k == 2800


def test_values_of_twelve_bits_are_found(data, tmp_path):
    folder = tmp_path / "deep"
    deep = make_tiny_coco(folder, images=3, val_images=1)
    for path in (deep / "images").iterdir():
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"), np.uint16) * 16
        Image.fromarray(grey).save(path, format="PNG")
    chosen = preset_for(AUTO, deep).input
    assert (chosen.intensity, chosen.bits) == ("bit_depth", 12)


@pytest.mark.parametrize(
    ("darkest", "expected"), [(0.8, "as_is"), (0.2, "percentile")], ids=["alike", "dim"]
)
def test_images_of_different_brightness_are_stretched_each_on_its_own(darkest, expected, tmp_path):
    folder = make_tiny_coco(tmp_path / "data", images=8, val_images=1)
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB"))
        factor = darkest if number % 2 else 1
        Image.fromarray((values * factor).astype(np.uint8)).save(path, format="PNG")
    assert preset_for(AUTO, folder).input.intensity == expected


def test_differences_turn_one_run_into_the_other(data):
    auto = preset_for(None, data)
    assert replace(override(tiny(), differences(auto, tiny())), name=AUTO) == auto


def test_auto_needs_data():
    with pytest.raises(ConfigError, match="preset auto fits data"):
        preset(AUTO)


def test_python_functions_train_evaluate_and_take_short_names(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = polarmask.train(
        data, tmp_path / "run", channels=32, tower_depth=1, **{"optim.epochs": 4}
    )
    card = read_card(tmp_path / "run" / "model")
    assert (card.config.name, card.config.model.channels, card.config.optim.epochs) == (AUTO, 32, 4)
    assert "steps are few" in caplog.text
    assert "about" in caplog.text
    judged = polarmask.evaluate(model, data)
    assert repr(judged).startswith("Evaluation(split='val', mask_ap=0.")
    assert polarmask.evaluate(tmp_path / "run", data).mask_ap == judged.mask_ap


def test_a_server_is_not_evaluated(data):
    served = polarmask.load("http://127.0.0.1:9/predictions/polarmask")
    with pytest.raises(polarmask.PolarMaskError, match="server can't be evaluated"):
        polarmask.evaluate(served, data)
