"""From a pipeline's parameters to the settings of a run, and back for what labels depend on."""

import json
from typing import Any

from polarmask.config import RunConfig, override
from polarmask.errors import ConfigError
from polarmask.label_store import label_settings
from polarmask.presets import preset


def read_settings(preset_name: str, overrides: str) -> RunConfig:
    """Return the config of a run.

    Args:
        preset_name: See `polarmask.presets`.
        overrides: `section.field=value`, separated by spaces; no spaces inside a value.

    Raises:
        ConfigError: No such preset or setting, or a value that can't work.
    """
    return override(preset(preset_name), overrides.split())


def check_settings(
    *,
    preset_name: str,
    overrides: str,
    processes: int,
    floor_ap: float,
) -> RunConfig:
    """Find in seconds what would otherwise stop a run after an hour.

    Args:
        preset_name: See `polarmask.presets`.
        overrides: As for `read_settings`.
        processes: That train, all nodes together; 0 if the launcher is to choose.
        floor_ap: Mask AP in [0, 1].

    Raises:
        ConfigError: Says which parameter of the pipeline can't work.
    """
    config = read_settings(preset_name, overrides)
    if processes < 0 or (processes and config.optim.batch_size % processes):
        raise ConfigError(
            f"optim.batch_size {config.optim.batch_size} does not divide among {processes} "
            "training processes; change it with train_set, or the number of processes"
        )
    if not 0 <= floor_ap <= 1:
        raise ConfigError(f"eval_floor_ap is {floor_ap}: mask AP lies in [0, 1]")
    return config


def label_settings_text(config: RunConfig) -> str:
    """Return what ray labels depend on as JSON: equal for runs that can share labels."""
    return json.dumps(label_settings(config), sort_keys=True)


def config_for_labels(text: str) -> RunConfig:
    """Return a config with these label settings; the rest of it is of no matter."""
    settings: dict[str, Any] = json.loads(text)
    values = {
        "model.num_rays": settings["num_rays"],
        "model.strides": settings["strides"],
        **{f"input.{name}": value for name, value in settings["input"].items()},
        **{f"labels.{name}": value for name, value in settings["labels"].items()},
    }
    assignments = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return override(preset("coco-r50-1x"), assignments)
