"""The paper authors' checkpoints as our model folders.

Their network is ours under other names; only the rays differ. Ours leave clockwise on screen from
+x. Theirs start downwards and turn the other way; before November 2019 they started at -x.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from polarmask.config.presets import original, preset
from polarmask.config.settings import RunConfig
from polarmask.data.coco import Category, load_coco
from polarmask.data.coco_categories import COCO_CATEGORIES
from polarmask.engines.torch_engines import Eager
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.evaluation.evaluate import evaluate_split
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.backbone_weights import backbone_part, read_state_dict
from polarmask.network.detector import PolarMask
from polarmask.system.files import sha256_of_file

logger = logging.getLogger(__name__)

RayOrder = Literal["new", "old"]
"""`new` in checkpoints since 2019-11-12, `old` before."""

_TOWERS = {"cls_convs": "class_tower", "reg_convs": "box_tower", "mask_convs": "ray_tower"}
_OUTPUTS = {
    "polar_cls": "class_logit",
    "polar_reg": "box",
    "polar_mask": "ray",
    "polar_centerness": "quality_logit",
}
_COMPARED_IMAGES = 20


def import_original(
    checkpoint: Path,
    out: Path,
    *,
    data: Path | None = None,
    preset_name: str | None = None,
    ray_order: RayOrder | None = None,
) -> ModelCard:
    """Write a model folder from a checkpoint of the original code.

    Args:
        checkpoint: File that the original's training or its release script wrote.
        out: Model folder to write.
        data: COCO folder whose `val` split gives the categories and, by the AP of its first
            images, the ray order. Without it, a model of 80 classes has COCO's categories.
        preset_name: Preset that the checkpoint was trained with, for its input size; None takes
            the 1x preset of the checkpoint's network.
        ray_order: None decides by `data`, or without it by the checkpoint's parameter names.

    Raises:
        ConfigError: Unreadable file, or unknown categories.
        ModelFormatError: The file holds another network.
    """
    stored = read_state_dict(checkpoint)
    by_names: RayOrder = "old" if "bbox_head.fcos_cls.weight" in stored else "new"
    state = {
        key.replace("bbox_head.fcos_", "bbox_head.polar_"): value
        for key, value in stored.items()
        if not key.endswith("num_batches_tracked")
    }
    try:
        config = _config(state, preset_name)
        categories = _categories(config.model.num_classes, data)
        provenance = {"imported_from": checkpoint.name, "sha256": sha256_of_file(checkpoint)}
        card = ModelCard(config, categories, provenance)
        if ray_order is None:
            ray_order = by_names if data is None else better_order(state, card, data, by_names)
        detector = detector_from(state, config, ray_order)
    except ModelFormatError as error:
        raise ModelFormatError(f"{checkpoint}: {error}") from error
    card = replace(card, provenance={**provenance, "ray_order": ray_order})
    save_model(out, detector, card)
    return card


def detector_from(state: Mapping[str, Tensor], config: RunConfig, ray_order: RayOrder) -> PolarMask:
    """Return our network with the original's parameters.

    Args:
        state: The original's names since 2019-11-12, `num_batches_tracked` left out.
        config: With the model that the parameters fit.
        ray_order: Of `state`.

    Raises:
        ModelFormatError: Parameters are missing, unknown or of another shape.
    """
    source_R = _ray_source(config.model.num_rays, ray_order)
    ours = {f"pyramid.resnet.{name}": value for name, value in backbone_part(state).items()}
    for name, value in state.items():
        if not name.startswith("backbone.") and "scales_" not in name:
            is_ray = name.startswith("bbox_head.polar_mask.")
            ours[_our_name(name)] = value[source_R] if is_ray else value
    try:
        for theirs, scale in (("scales_bbox", "box_scale"), ("scales_mask", "ray_scale")):
            levels = range(len(config.model.strides))
            values = [state[f"bbox_head.{theirs}.{level}.scale"] for level in levels]
            ours[f"head.{scale}"] = torch.stack([value.reshape(()) for value in values])
        detector = PolarMask(config.model)
        detector.load_state_dict(ours)
    except (KeyError, RuntimeError) as error:
        raise ModelFormatError(
            f"parameters do not fit {config.name} ({error}); give --preset of the run it is from"
        ) from error
    return detector.eval()


def _our_name(name: str) -> str:
    """Translate the name of a parameter beyond the backbone; an unknown one comes back as it is."""
    match name.split("."):
        case ["neck", "lateral_convs", level, "conv", leaf]:
            return f"pyramid.fpn.inner_blocks.{level}.0.{leaf}"
        case ["neck", "fpn_convs", "3" | "4" as level, "conv", leaf]:
            return f"pyramid.fpn.extra_blocks.convs.{int(level) - 3}.{leaf}"
        case ["neck", "fpn_convs", level, "conv", leaf]:
            return f"pyramid.fpn.layer_blocks.{level}.0.{leaf}"
        case ["bbox_head", tower, depth, "conv", leaf] if tower in _TOWERS:
            return f"head.{_TOWERS[tower]}.{3 * int(depth)}.{leaf}"
        case ["bbox_head", tower, depth, "gn", leaf] if tower in _TOWERS:
            return f"head.{_TOWERS[tower]}.{3 * int(depth) + 1}.{leaf}"
        case ["bbox_head", tower, layer, "conv_offset_mask", leaf] if tower in _TOWERS:
            return f"head.{_TOWERS[tower]}.{layer}.offset.{leaf}"
        case ["bbox_head", tower, layer, leaf] if tower in _TOWERS:
            return f"head.{_TOWERS[tower]}.{layer}.{leaf}"
        case ["bbox_head", output, leaf] if output in _OUTPUTS:
            return f"head.{_OUTPUTS[output]}.{leaf}"
    return name


def _ray_source(num_rays: int, ray_order: RayOrder) -> Tensor:
    """Return (R,) for each of our rays the original's ray that points the same way.

    With R rays their ray k points to R / 4 - k of ours (new), or to R / 2 - k (old).
    """
    start = num_rays // 4 if ray_order == "new" else num_rays // 2
    return (start - torch.arange(num_rays)) % num_rays


def _config(state: Mapping[str, Tensor], preset_name: str | None) -> RunConfig:
    classes, rays = (state.get(f"bbox_head.polar_{name}.weight") for name in ("cls", "mask"))
    if classes is None or rays is None or "backbone.layer1.0.conv2.weight" not in state:
        raise ModelFormatError(
            "no `backbone.` and `bbox_head.` of PolarMask in it; "
            "give a checkpoint of the paper's code"
        )
    run = original(preset(preset_name or fitting_preset(state)))
    return replace(run, model=replace(run.model, num_classes=len(classes), num_rays=len(rays)))


def fitting_preset(state: Mapping[str, Tensor]) -> str:
    """Return the shortest published run of the network that these parameters fit."""
    in_64_groups = state["backbone.layer1.0.conv2.weight"].shape[1] == 4
    deep = "backbone.layer3.22.conv1.weight" in state
    network = "x101" if in_64_groups else "r101" if deep else "r50"
    deformable = "bbox_head.cls_convs.0.conv_offset_mask.weight" in state
    return f"coco-{network}-dcn-1x-32gpu" if deformable else f"coco-{network}-1x"


def _categories(num_classes: int, data: Path | None) -> tuple[Category, ...]:
    known = COCO_CATEGORIES if data is None else load_coco(data, "val").categories
    if len(known) != num_classes:
        raise ConfigError(
            f"the checkpoint has {num_classes} classes and {data or 'COCO'} has {len(known)}; "
            "give --data with the annotations that it was trained on"
        )
    return known


def better_order(
    state: Mapping[str, Tensor], card: ModelCard, data: Path, otherwise: RayOrder
) -> RayOrder:
    """Return the ray order that finds more on the first validation images of `data`.

    Args:
        state: As for `detector_from`.
        card: Of the model to be.
        data: COCO folder.
        otherwise: Answer where both orders find equally much.
    """
    coco = load_coco(data, "val", config=card.config.input)
    coco = replace(coco, images=coco.images[:_COMPARED_IMAGES])
    mask_ap: dict[RayOrder, float] = {}
    orders: tuple[RayOrder, RayOrder] = ("new", "old")
    for order in orders:
        detector = detector_from(state, card.config, order)
        predictor = Predictor(Eager(detector), card, torch.device("cpu"))
        mask_ap[order] = evaluate_split(predictor, coco)[0].mask_ap
    logger.info(
        "mask AP on %d images: %.4f in new ray order, %.4f in old",
        len(coco.images),
        mask_ap["new"],
        mask_ap["old"],
    )
    if mask_ap["new"] == mask_ap["old"]:
        return otherwise
    return "new" if mask_ap["new"] > mask_ap["old"] else "old"
