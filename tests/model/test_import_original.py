"""The original's checkpoints give the original's outputs, golden to 1e-3."""

import json
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from factories import coco_annotation, make_tiny_coco
from polarmask.cli import main
from polarmask.config.input_settings import InputConfig
from polarmask.config.presets import original, preset
from polarmask.data.coco import Category
from polarmask.data.coco_categories import COCO_CATEGORIES
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.inference.model_folder import ModelCard, load_model
from polarmask.model_sources.import_original import (
    better_order,
    detector_from,
    fitting_preset,
    import_original,
)
from polarmask.network.detector import PolarMask
from reference.golden_values import golden_value

GOLDEN = Path(__file__).parents[1] / "golden"
STRIDES = (8, 16, 32, 64, 128)


def golden_state(name):
    """Return the original's state dict and the golden file with its outputs."""
    golden = np.load(GOLDEN / f"golden_forward_{name}.npz")
    shapes = [tuple(int(n) for n in text.split(",") if n) for text in golden["shapes"].tolist()]
    state = {
        key: torch.from_numpy(np.asarray(golden_value(key, shape)))
        for key, shape in zip(golden["keys"].tolist(), shapes, strict=True)
    }
    return state, golden


@pytest.fixture(scope="module")
def state_of():
    return cache(golden_state)


@pytest.fixture(scope="module")
def r50(state_of):
    return state_of("r50")


def original_rays(ray_R):
    """Undo the permutation: the original's ray k points to (sin 10k, cos 10k), y down."""
    k = np.arange(36)
    towards = np.degrees(np.arctan2(np.cos(np.radians(10 * k)), np.sin(np.radians(10 * k))))
    return ray_R[np.round(towards / 10).astype(int) % 36]


@pytest.mark.parametrize("name", ["r50", "r50_dcn"])
def test_an_imported_network_answers_as_the_original(name, state_of, tmp_path):
    state, golden = state_of(name)
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, tmp_path / "epoch_12.pth")
    import_original(tmp_path / "epoch_12.pth", tmp_path / "model")
    detector, _ = load_model(tmp_path / "model")
    image_hw = golden["input_hw"].tolist()
    image = torch.from_numpy(golden_value("input.image", (1, 3, *image_hw)))
    with torch.inference_mode():
        found = detector(image)
    sizes = [rows * columns for rows, columns in found.level_hws]
    for level, (rows, columns) in enumerate(found.level_hws):
        step = (4, 2, 1, 1, 1)[level]

        def theirs(flat, level=level, rows=rows, columns=columns, step=step):
            at_level = flat[0].split(sizes)[level].numpy()
            return at_level.reshape(rows, columns, -1).transpose(2, 0, 1)[:, ::step, ::step]

        for key, flat in (
            ("cls", found.class_BLC),
            ("centerness", found.quality_BL[..., None]),
            ("bbox", found.box_BL4),
        ):
            expected = golden[f"{key}_{level}"]
            # Float32 sums in another order over fifty layers; logits near zero need the floor.
            np.testing.assert_allclose(theirs(flat), expected, rtol=1e-3, atol=1e-3, err_msg=key)
        np.testing.assert_allclose(
            original_rays(theirs(found.ray_BLR)), golden[f"mask_{level}"], rtol=1e-3
        )


def test_a_deformable_network_has_the_original_s_parameter_count():
    golden = np.load(GOLDEN / "golden_forward_r50_dcn.npz")
    config = replace(preset("coco-r50-dcn-1x-32gpu").model, backbone_norm="batch")
    with torch.device("meta"):
        detector = PolarMask(config)
    assert sum(p.numel() for p in detector.parameters()) == golden["n_params"]


def test_old_names_mean_old_rays_and_give_the_same_polygons(r50, tmp_path):
    """Ray k of October 2019 points to (-cos 10k, sin 10k): ray k + 27 of the later code."""
    state, _ = r50
    old = {
        key.replace("bbox_head.polar_", "bbox_head.fcos_"): value for key, value in state.items()
    }
    for leaf in ("weight", "bias"):
        # new[(k + 27) % 36] = old[k], so old[k] = new[(k + 27) % 36].
        new = state[f"bbox_head.polar_mask.{leaf}"]
        old[f"bbox_head.fcos_mask.{leaf}"] = new.roll(-27, dims=0)
    torch.save(old, tmp_path / "october.pth")
    card = import_original(tmp_path / "october.pth", tmp_path / "model")
    imported, _ = load_model(tmp_path / "model")
    config = original(preset("coco-r50-1x"))
    assert card.provenance["ray_order"] == "old"
    expected = detector_from(state, config, "new").head.ray
    assert torch.equal(imported.head.ray.weight, expected.weight)
    assert torch.equal(imported.head.ray.bias, expected.bias)


def test_a_released_file_is_taken_for_coco_in_original_mode(r50, tmp_path, capsys):
    state, _ = r50
    torch.save({"state_dict": state}, tmp_path / "released.pth")
    flags = [str(tmp_path / "released.pth"), "--out", str(tmp_path / "model")]
    assert main(["import-original", *flags, "--preset", "coco-r50-2x-32gpu"]) == 0
    assert "new ray order" in capsys.readouterr().out
    _, card = load_model(tmp_path / "model")
    assert card.config == original(preset("coco-r50-2x-32gpu"))
    assert card.categories == COCO_CATEGORIES
    assert card.categories[-1] == Category(id=90, name="toothbrush")


@pytest.mark.parametrize(
    ("blocks", "width", "deformable", "name"),
    [
        (6, 64, False, "coco-r50-1x"),
        (23, 64, True, "coco-r101-dcn-1x-32gpu"),
        (23, 4, False, "coco-x101-1x"),
        (23, 4, True, "coco-x101-dcn-1x-32gpu"),
    ],
)
def test_shapes_tell_the_network(blocks, width, deformable, name):
    state = {f"backbone.layer3.{block}.conv1.weight": torch.zeros(1) for block in range(blocks)}
    state["backbone.layer1.0.conv2.weight"] = torch.zeros(64, width, 3, 3)
    if deformable:
        state["bbox_head.cls_convs.0.conv_offset_mask.weight"] = torch.zeros(27, 256, 3, 3)
    assert fitting_preset(state) == name


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_checkpoint_can_not_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Path("bomb.pth").open("wb") as file:
        pickle.dump({"state_dict": _Bomb()}, file, protocol=2)
    torch.save({"state_dict": {}, "meta": _Bomb()}, "zipped.pth")
    for name in ("bomb.pth", "zipped.pth"):
        with pytest.raises(ConfigError, match="can't be read as plain tensors"):
            import_original(Path(name), Path("model"))
    assert not Path("exploded").exists()


def test_another_detector_is_refused_by_name(r50, tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ModelFormatError, match=r"other\.pth: no `backbone\.`"):
        import_original(tmp_path / "other.pth", tmp_path / "model")
    state, _ = r50
    torch.save({**state, "bbox_head.extra.bias": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ModelFormatError, match=r"bbox_head\.extra\.bias"):
        import_original(tmp_path / "more.pth", tmp_path / "model")


def test_classes_that_are_not_coco_s_need_the_data(r50, tmp_path, drawn_data):
    state, _ = r50
    few = {
        key: value[:3] if key.startswith("bbox_head.polar_cls") else value
        for key, value in state.items()
    }
    torch.save(few, tmp_path / "three.pth")
    with pytest.raises(ConfigError, match=r"3 classes and COCO has 80; give --data"):
        import_original(tmp_path / "three.pth", tmp_path / "model", ray_order="new")
    card = import_original(
        tmp_path / "three.pth", tmp_path / "model", ray_order="new", data=drawn_data
    )
    assert [category.name for category in card.categories] == ["ellipse", "star", "crescent"]


def one_shape_state(state, ray_R):
    """Return parameters that see one shape of category 0 at the centre of a 128 px image.

    Only the coarsest level has a signal, which identity towers carry to the class output.
    """
    blind = {
        key: torch.ones_like(value) if key.endswith("running_var") else torch.zeros_like(value)
        for key, value in state.items()
    }
    signs = torch.tensor([1.0, -1.0]).repeat(128)
    blind["neck.fpn_convs.4.conv.bias"] = signs
    identity = torch.zeros(256, 256, 3, 3)
    identity[range(256), range(256), 1, 1] = 1
    for depth in range(4):
        blind[f"bbox_head.cls_convs.{depth}.conv.weight"] = identity
        blind[f"bbox_head.cls_convs.{depth}.gn.weight"] = torch.ones(256)
    blind["bbox_head.polar_cls.weight"][0, :, 1, 1] = 1
    blind["bbox_head.polar_cls.bias"][:] = -20
    blind["bbox_head.polar_mask.bias"] = torch.from_numpy(np.log(ray_R)).float()
    blind["bbox_head.polar_reg.bias"][:] = 3
    for level in range(5):
        blind[f"bbox_head.scales_mask.{level}.scale"].fill_(1)
        blind[f"bbox_head.scales_bbox.{level}.scale"].fill_(1)
    return blind


@pytest.mark.parametrize("made_in", ["new", "old"])
def test_images_tell_the_ray_order(r50, tmp_path, made_in):
    k = np.arange(36)
    angle = np.radians(10 * k)
    direction_new = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    direction_old = np.stack([-np.cos(angle), np.sin(angle)], axis=1)
    direction_R2 = direction_new if made_in == "new" else direction_old
    # A drop that points to the right.
    ray_R = 14 + 36 * np.maximum(direction_R2[:, 0], 0) ** 2
    vertices = 64 + ray_R[:, None] * direction_R2
    data = make_tiny_coco(tmp_path, images=1, val_images=1, sizes=((128, 128),))
    path = data / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    drop = coco_annotation(1, document["images"][0]["id"], 1, vertices)
    names = [{"id": category.id, "name": category.name} for category in COCO_CATEGORIES]
    path.write_text(json.dumps({**document, "annotations": [drop], "categories": names}))
    config = replace(original(preset("coco-r50-1x")), input=InputConfig(short_side=None))
    card = ModelCard(config, COCO_CATEGORIES)
    other = {"new": "old", "old": "new"}[made_in]
    assert better_order(one_shape_state(r50[0], ray_R), card, data, other) == made_in
