"""CUDA gives the CPU's answers. Not selected by default; `make test-gpu` runs it on a GPU."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from factories import make_tiny_coco
from polarmask.config.presets import tiny
from polarmask.data.coco import load_coco
from polarmask.data.images import read_image
from polarmask.engines.interface import ENGINES
from polarmask.evaluation.measure_engines import measure_engines
from polarmask.geometry.rays import Polygons, cast_rays
from polarmask.inference.predictor import Predictor
from polarmask.labels.image_labels import label_images
from polarmask.labels.precompute import precompute
from polarmask.labels.store import LabelStore
from polarmask.network.detector import PolarMask
from polarmask.training.dataset import EpochImage, SampleKey, TrainingImages, collate
from polarmask.training.train import TrainOptions, train

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config():
    run = tiny()
    return replace(
        run,
        model=replace(run.model, channels=32, tower_depth=1, num_classes=3),
        optim=replace(run.optim, batch_size=4, epochs=3, warmup_steps=2),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tiny_coco(tmp_path_factory.mktemp("drawn"), images=8, val_images=3)


@pytest.fixture(scope="module")
def labels(data, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    precompute(data, folder, config)
    return folder


def run_on(device, config, data, labels, out):
    train(config, TrainOptions(data=data, labels=labels, out=out, device=device, loader_workers=1))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("amp", ["auto", "bf16", "fp16"])
def test_mixed_precision_training_has_the_cpu_s_losses(config, data, labels, tmp_path, amp):
    expected = run_on(CPU, config, data, labels, tmp_path / "cpu")
    half = replace(config, optim=replace(config.optim, amp=amp))
    losses = run_on(CUDA, half, data, labels, tmp_path / "cuda")
    # 1 %: bfloat16 keeps 8 bits, and the loss is a mean over hundreds of locations.
    assert losses[0] == pytest.approx(expected[0], rel=0.01)
    assert losses == pytest.approx(expected, rel=0.1)


def test_a_run_goes_on_from_its_checkpoint(config, data, labels, tmp_path):
    options = TrainOptions(data=data, labels=labels, out=tmp_path / "run", device=CUDA)
    train(config, replace(options, stop_after=3))
    train(config, options)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("backbone", ["resnet18", "timm/mobilenetv4_conv_small_050"])
def test_the_network_gives_the_cpu_s_answers(config, monkeypatch, backbone):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it keeps 10 bits only
    torch.manual_seed(0)
    network = PolarMask(replace(config.model, backbone=backbone)).eval()
    image = torch.randn(2, 3, 96, 128)
    with torch.inference_mode():
        expected = network(image)
        found = network.to(CUDA)(image.to(CUDA))
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            # 1e-3: float32 sums over thousands of products in another order.
            torch.testing.assert_close(getattr(found, name).cpu(), value, rtol=1e-3, atol=1e-3)


def test_predictions_are_the_cpu_s(config, data, labels, tmp_path):
    run_on(CPU, config, data, labels, tmp_path / "run")
    images = [
        read_image(load_coco(data, "val").image_path(record))
        for record in load_coco(data, "val").images
    ]
    model = tmp_path / "run" / "model"
    pairs = zip(
        Predictor.load(model).predict(images),
        Predictor.load(model, device="cuda").predict(images),
        strict=True,
    )
    for expected, found in pairs:
        assert len(expected)
        # TF32 convolutions move scores by about 1e-3; half a pixel is far below a stride.
        np.testing.assert_allclose(found.scores[:5], expected.scores[:5], atol=5e-3)
        np.testing.assert_allclose(found.polygons[:1], expected.polygons[:1], atol=0.5)


def test_label_casting_is_the_cpu_s(data):
    record = load_coco(data, "train").images[0]
    vertices = [torch.from_numpy(a.parts[0]).float() for a in record.annotations]
    owner_P = torch.arange(len(vertices)).repeat_interleave(50)
    low_high_P = [(vertices[g].amin(dim=0), vertices[g].amax(dim=0)) for g in owner_P.tolist()]
    generator = torch.Generator().manual_seed(0)
    point_P2 = torch.stack(
        [low + (high - low) * torch.rand(2, generator=generator) for low, high in low_high_P]
    )
    expected_PR, inside_P = cast_rays(point_P2, owner_P, Polygons.from_vertices(vertices), 36)
    on_gpu = Polygons.from_vertices([polygon.to(CUDA) for polygon in vertices])
    found_PR, found_inside_P = cast_rays(point_P2.to(CUDA), owner_P.to(CUDA), on_gpu, 36)
    assert torch.equal(found_inside_P.cpu(), inside_P)
    # A point beside an edge or a ray along one may cross or miss it by a rounding.
    differs_PR = (found_PR.cpu() - expected_PR).abs() > 1e-3
    assert differs_PR.float().mean() < 1e-3


def test_labels_of_whole_batches_are_the_cpu_s(config, data):
    records = load_coco(data, "train").images
    for one, other in zip(
        label_images(records, config), label_images(records, config, "cuda"), strict=True
    ):
        assert np.array_equal(one.location_P3, other.location_P3)
        np.testing.assert_allclose(one.ray_PR, other.ray_PR, atol=1e-3)


def test_a_batch_can_be_pinned(config, data, labels):
    images = TrainingImages(load_coco(data, "train"), LabelStore.open(labels), config)
    hw = np.max([images.canvas_hw(EpochImage(0, index)) for index in range(2)], axis=0).tolist()
    samples = [images[SampleKey(EpochImage(0, index), tuple(hw))] for index in range(2)]
    batch = collate(samples, config)
    pinned = batch.pin_memory()
    assert pinned.image_BHW3.is_pinned()
    assert pinned.targets.ray_PR.is_pinned()
    assert pinned.image_ids == batch.image_ids
    assert torch.equal(pinned.targets.location_P, batch.targets.location_P)


@pytest.mark.parametrize("name", ["folded", "cuda_half", "cuda_graph"])
def test_an_engine_on_cuda_gives_the_cpu_s_answers_within_its_tolerance(
    config, data, labels, tmp_path, name
):
    run_on(CPU, config, data, labels, tmp_path)
    eager = Predictor.load(tmp_path / "model", engine="eager")
    other = Predictor.load(tmp_path / "model", device="cuda", engine=name)
    assert other.engine.name == name
    split = load_coco(data, "val")
    for record in split.images * 2:  # a recorded graph answers again
        image = read_image(split.image_path(record))
        with torch.inference_mode():
            wanted = eager.engine.run(eager.network_input(image))
            found = other.engine.run(other.network_input(image))
        tolerance = ENGINES[name].score_tolerance
        torch.testing.assert_close(
            found.class_BLC.float().sigmoid().cpu(),
            wanted.class_BLC.sigmoid(),
            atol=tolerance,
            rtol=0,
        )


def test_measuring_on_cuda_ranks_its_engines(config, data, labels, tmp_path):
    run_on(CPU, config, data, labels, tmp_path)
    report = measure_engines(tmp_path / "model", data=data, device="cuda")
    assert {engine.name for engine in report.engines} == {
        "eager",
        "folded",
        "cuda_half",
        "cuda_graph",
    }
    assert "folded" in report.fastest_first
