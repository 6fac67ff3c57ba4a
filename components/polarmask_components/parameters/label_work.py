"""How ray labels are made: their settings as JSON, the shards of each pod, the workers."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarmask.config.overrides import override
from polarmask.config.presets import AUTO, preset
from polarmask.config.settings import RunConfig
from polarmask.errors import ConfigError
from polarmask.labels.store import label_settings
from polarmask_components.parameters.step_resources import CPU
from polarmask_components.parameters.training_request import TrainingRequest

if TYPE_CHECKING:
    from polarmask.labels.precompute import Workers

_IMAGES_PER_WORKER = 1000
_MOST_PODS = 100
_MOST_PER_GPU = 8
"""Processes that share a GPU; each takes half a GB of it before the first label."""


def choose_workers(data: Path, device: str = CPU) -> "Workers":
    """Return what makes the ray labels of a COCO folder fastest here.

    The number of processes is no parameter: the labels are the same, so their cached result must
    not depend on it. A process takes seconds to start, in which it could label a thousand small
    images.

    Args:
        data: COCO folder.
        device: cpu or cuda.
    """
    import torch  # takes seconds: too long for who only checks parameters

    from polarmask.labels.precompute import Workers

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    images = sum(1 for _ in (data / "images").rglob("*"))
    most = (cores or 1) if device == CPU else _MOST_PER_GPU * torch.cuda.device_count()
    processes = min(cores or 1, most, images // _IMAGES_PER_WORKER)
    # Without a device, compiled code makes the labels, which on CPUs is faster than torch.
    return Workers(processes if processes > 1 else 0, None if device == CPU else device)


def label_shards(pods: int) -> list[str]:
    """Return which shards each pod makes: "1/2" and "2/2" are every second one.

    Raises:
        ConfigError: No pod, or so many that fetching the data costs more than they save.
    """
    if not 1 <= pods <= _MOST_PODS:
        raise ConfigError(f"label_pods is {pods}: give 1 to {_MOST_PODS}")
    return [f"{number}/{pods}" for number in range(1, pods + 1)]


def label_settings_text(request: TrainingRequest) -> str:
    """Return what ray labels depend on as JSON: equal for runs that can share labels.

    Of the preset that fits the data only the name is known before there are data.
    """
    if request.preset == AUTO:
        return json.dumps({"preset": AUTO, "set": request.overrides.split()}, sort_keys=True)
    return json.dumps(label_settings(request.config), sort_keys=True)


def config_for_labels(text: str, data: Path) -> RunConfig:
    """Return a config with these label settings; its other settings are not used.

    Args:
        text: Of `label_settings_text`.
        data: COCO folder.
    """
    settings: dict[str, Any] = json.loads(text)
    if "preset" in settings:
        from polarmask.evaluation.auto_preset import preset_for  # imports torch, preflight need not

        return override(preset_for(settings["preset"], data), settings["set"])
    values = {
        "model.num_rays": settings["num_rays"],
        "model.strides": settings["strides"],
        **{f"input.{name}": value for name, value in settings["input"].items()},
        **{f"labels.{name}": value for name, value in settings["labels"].items()},
    }
    assignments = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return override(preset("coco-r50-1x"), assignments)
