"""Engines answer like eager float32, or report why they can't, and never stop a worker."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from polarmask.config.presets import preset, tiny
from polarmask.data.coco import Category
from polarmask.data.images import read_image
from polarmask.data.preprocess import letterbox, letterbox_hw
from polarmask.engines.export import export_program
from polarmask.engines.fold import fold_batch_norm
from polarmask.engines.interface import ENGINES, INT8_FILE, PROGRAM_FILE, EngineError
from polarmask.engines.load import make_engine
from polarmask.engines.machine import has_bf16
from polarmask.engines.quantize import calibrate, quantize_program
from polarmask.engines.ranking import RANKING_FILE, EngineRanking, EngineResult, read_ranking
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.evaluation.measure_engines import admit, measure_engines, ranking_table
from polarmask.inference.model_folder import ModelCard, load_model, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask

PHOTOS = sorted((Path(__file__).parents[1] / "data" / "coco_photos" / "images").glob("*.jpg"))
CPU = torch.device("cpu")
ON_CPU = [name for name, kind in ENGINES.items() if kind.device == "cpu"]


def with_statistics(detector):
    """Give norms the statistics that training would, so that folding has something to fold."""
    random = torch.Generator().manual_seed(1)
    for name, value in detector.state_dict().items():
        if name.endswith(("running_mean", "running_var")) or ".bn" in name:
            value.copy_(torch.rand(value.shape, generator=random) * 0.5 + 0.5)
    return detector.eval()


@pytest.fixture(scope="module")
def model(box_model, tmp_path_factory):
    """Boxes, frozen batch norm, photos resized: what the published runs have, but small."""
    torch.manual_seed(0)
    config = replace(
        preset("coco-r50-1x"),
        name="small",
        model=replace(box_model, num_classes=3),
        input=replace(preset("coco-r50-1x").input, short_side=192, max_side=320),
        labels=replace(
            tiny().labels, level_ranges=((0, 64), (64, 128), (128, 256), (256, float("inf")))
        ),
    )
    detector = with_statistics(PolarMask(config.model))
    torch.nn.init.normal_(detector.head.class_logit.weight, std=0.2)
    categories = tuple(Category(n, str(n)) for n in (1, 2, 3))
    folder = tmp_path_factory.mktemp("engines") / "model"
    save_model(folder, detector, ModelCard(config, categories))
    program = folder / PROGRAM_FILE
    export_program(load_model(folder)[0], program)
    reference = Predictor.load(folder, engine="eager")
    others = [reference.network_input(read_image(path)) for path in PHOTOS[3:]]
    quantize_program(program, calibrate(program, others), folder / INT8_FILE)
    return folder


@pytest.fixture(scope="module")
def photos():
    return [read_image(path) for path in PHOTOS[:3]]


@pytest.mark.parametrize("name", ON_CPU)
def test_an_engine_equals_eager_float32_on_real_photos_within_its_tolerance(model, photos, name):
    if "bf16" in name and not has_bf16():
        pytest.skip("this CPU has no bf16")
    eager, other = Predictor.load(model, engine="eager"), Predictor.load(model, engine=name)
    assert other.engine.name == name
    kind = ENGINES[name]
    for photo in photos:
        batch = eager.network_input(photo)
        with torch.inference_mode():
            wanted, found = eager.engine.run(batch), other.engine.run(batch)
        assert found.level_hws == wanted.level_hws
        scores = [
            each.class_BLC.float().sigmoid() * each.quality_BL.float().sigmoid()[..., None]
            for each in (wanted, found)
        ]
        torch.testing.assert_close(scores[1], scores[0], atol=kind.score_tolerance, rtol=0)
        for length in ("ray_BLR", "box_BL4"):
            torch.testing.assert_close(
                getattr(found, length), getattr(wanted, length), atol=0, rtol=kind.ray_tolerance
            )


def test_folding_leaves_deformable_and_ordinary_convolutions_what_they_were():
    torch.manual_seed(0)
    config = replace(preset("coco-r50-dcn-1x-32gpu").model, channels=32, tower_depth=1)
    detector = with_statistics(PolarMask(config)).double()
    image = torch.rand(1, 3, 256, 256, dtype=torch.float64)
    with torch.inference_mode():
        wanted = detector(image)
        fold_batch_norm(detector)
        found = detector(image)
    assert not [module for module in detector.modules() if "BatchNorm" in type(module).__name__]
    # float64: what is left is rounding, far below any wrong pairing
    torch.testing.assert_close(found.class_BLC, wanted.class_BLC, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.ray_BLR, wanted.ray_BLR, atol=1e-4, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco-r50-dcn-1x-32gpu", "coco-r50-1x-original", "tiny"])
def test_each_kind_of_network_has_an_engine_and_a_reason_for_those_it_has_not(name, tmp_path):
    torch.manual_seed(0)
    config = preset(name)
    config = replace(config, input=replace(config.input, short_side=256, max_side=384))
    detector = with_statistics(PolarMask(config.model))
    categories = tuple(Category(n + 1, str(n)) for n in range(config.model.num_classes))
    save_model(tmp_path / "model", detector, ModelCard(config, categories))
    ranking = measure_engines(tmp_path / "model")
    assert len(ranking_table(ranking).splitlines()) == 1 + len(ranking.engines)
    assert "folded" in ranking.fastest_first
    assert all(engine.reason for engine in ranking.engines)


@pytest.mark.parametrize("damage", ["absent", "cut", "nonsense"])
def test_a_program_that_cant_be_loaded_is_replaced_with_a_warning(
    model, photos, damage, tmp_path, caplog
):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).symlink_to(model / name)
    program = tmp_path / PROGRAM_FILE
    program.parent.mkdir()
    if damage != "absent":
        whole = (model / PROGRAM_FILE).read_bytes()
        program.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"hello")
    for engine in ("openvino", "onnxruntime"):
        with caplog.at_level(logging.WARNING):
            predictor = Predictor.load(tmp_path, engine=engine)
        assert predictor.engine.name == "folded"
        assert f"engine {engine} is not used" in caplog.text
    assert predictor.predict(photos[:1])


def test_a_calibration_of_another_network_is_refused_and_writes_nothing(model, tmp_path):
    other = {"CLS": "TensorsData", "method": {"CLS": "CalibrationMethod", "value": 0}, "data": {}}
    with pytest.raises(EngineError, match="can't be quantized"):
        quantize_program(model / PROGRAM_FILE, other, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_quantizing_says_nothing_and_leaves_logging_as_it_was(model, tmp_path, caplog):
    root = logging.getLogger()
    before = root.level, list(root.handlers), root.manager.disable
    batch = Predictor.load(model, engine="eager").network_input(read_image(PHOTOS[0]))
    calibrate(model / PROGRAM_FILE, [batch])
    assert (root.level, list(root.handlers), root.manager.disable) == before
    assert not caplog.records


def test_the_ranking_of_a_folder_chooses_and_the_next_one_takes_over(model, tmp_path, caplog):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).symlink_to(model / name)
    (tmp_path / RANKING_FILE).write_text(a_ranking("openvino", "eager").to_json())
    with caplog.at_level(logging.WARNING):
        assert Predictor.load(tmp_path).engine.name == "eager"
    assert "no exported program" in caplog.text
    (tmp_path / RANKING_FILE).write_text(json.dumps({"format_version": 99}))
    assert Predictor.load(tmp_path).engine.name == "folded"
    assert "format version 99" in caplog.text


def test_without_a_ranking_the_folded_network_runs(model):
    assert Predictor.load(model).engine.name == "folded"


def test_engines_that_there_are_not_are_named(model):
    with pytest.raises(ConfigError, match="no engine 'fast'; there are: eager, folded"):
        Predictor.load(model, engine="fast")
    detector, _ = load_model(model)
    with pytest.raises(EngineError, match="runs on cuda"):
        make_engine("cuda_graph", detector, device=CPU, folder=model)


def a_ranking(*names):
    return EngineRanking(
        weights_sha256="0" * 64,
        device="cpu",
        cpu="a CPU",
        canvas_hw=(256, 384),
        images="none",
        engines=tuple(
            EngineResult(name=name, admitted=True, reason="", milliseconds=1.0 + place)
            for place, name in enumerate(names)
        ),
    )


def test_a_ranking_reads_back_as_it_was_written(tmp_path):
    ranking = a_ranking("openvino", "folded")
    (tmp_path / "engines.json").write_text(ranking.to_json())
    assert read_ranking(tmp_path / "engines.json") == ranking
    assert ranking.fastest_first == ("openvino", "folded")
    (tmp_path / "engines.json").write_text("[]")
    with pytest.raises(ModelFormatError, match="measure the engines again"):
        read_ranking(tmp_path / "engines.json")


@pytest.mark.parametrize(
    ("name", "difference", "mask_ap", "admitted", "expected_text"),
    [
        pytest.param("openvino", (1e-5, 1e-5), None, True, "equals", id="exact"),
        pytest.param("openvino", (2e-3, 1e-5), None, False, "scores by 0.002", id="other-scores"),
        pytest.param("openvino", (1e-5, float("inf")), None, False, "rays", id="not-a-number"),
        pytest.param("bf16", (1e-2, 1e-2), 0.498, True, "costs 0.20 points", id="cheap"),
        pytest.param("bf16", (1e-2, 1e-2), 0.496, False, "costs 0.40 points", id="dear"),
        pytest.param("bf16", (1e-2, 1e-2), 0.51, True, "costs -1.00", id="better-than-eager"),
    ],
)
def test_an_engine_is_admitted_by_its_answers(name, difference, mask_ap, admitted, expected_text):
    ap = float("nan") if mask_ap is None else mask_ap
    verdict = admit(ENGINES[name], difference, ap, 0.5)
    assert verdict.passed is admitted
    assert expected_text in verdict.reason


def test_neighbours_of_other_sizes_change_nothing(model, photos):
    predictor = Predictor.load(model)
    small = cv2.resize(photos[0], (97, 61))
    together = predictor.predict([photos[0], small, photos[1]])
    for image, found in zip([photos[0], small, photos[1]], together, strict=True):
        (alone,) = predictor.predict([image])
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(found.polygons, alone.polygons, atol=1e-3)


def test_a_letterbox_has_few_sizes_and_goes_on_with_the_mirror_image():
    strides = (8, 16, 32, 64, 128)
    assert letterbox_hw((250, 256), (4, 8, 16)) == (256, 256)
    assert letterbox_hw((257, 100), (4, 8, 16)) == (384, 128)
    assert letterbox_hw((768, 1024), strides) == (768, 1024)
    sizes = {letterbox_hw((h, w), strides) for h in range(600, 801, 7) for w in range(800, 1281, 9)}
    assert len(sizes) <= 20
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    canvas = letterbox(image, (4, 5))
    assert canvas.shape == (4, 5, 3)
    assert (canvas[:2, :2] == image).all()
    assert (canvas[0, 2] == image[0, 0]).all()  # the edge itself is not repeated
    assert letterbox(image, (2, 2)) is image


@pytest.mark.slow
def test_loading_an_engine_leaves_the_main_thread_its_stack_for_signals(model):
    """OpenVINO gives the loading thread one that is too small: the next SIGTERM would crash."""
    code = f"""
import ctypes
from pathlib import Path
from polarmask.inference.predictor import Predictor

def stack_for_signals():
    found = (ctypes.c_size_t * 3)()  # address, flags, size
    assert ctypes.CDLL(None).sigaltstack(None, found) == 0
    return list(found)

for name in ("openvino", "onnxruntime"):
    before = stack_for_signals()
    predictor = Predictor.load(Path({str(model)!r}), engine=name, threads=1)
    assert predictor.engine.name == name
    assert stack_for_signals() == before, (name, stack_for_signals())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
