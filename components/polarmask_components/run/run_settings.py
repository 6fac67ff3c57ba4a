"""From a pipeline's parameters to the settings of a run, and back for what labels depend on."""

import json
import os
from pathlib import Path
from typing import Any

from polarmask.config.presets import preset
from polarmask.config.settings import RunConfig, override
from polarmask.errors import ConfigError
from polarmask.labels.store import label_settings
from polarmask_components.run.job_settings import JobSettings

HERE, ON_CLUSTER = "here", "pytorchjob"
"""Where `train_on` lets a run train: in the step itself, or as a job of its own."""

_IMAGES_PER_WORKER = 1000
_MOST_PODS = 100


def read_settings(preset_name: str, overrides: str) -> RunConfig:
    """Return the config of a run.

    Args:
        preset_name: See `polarmask.config.presets`.
        overrides: `section.field=value`, separated by spaces; no spaces inside a value.

    Raises:
        ConfigError: No such preset or setting, or a value that can't work.
    """
    return override(preset(preset_name), overrides.split())


def check_settings(
    *,
    preset_name: str,
    overrides: str,
    on: str,
    job: JobSettings,
    nodes: int,
    min_nodes: int,
    processes_per_node: int,
    floor_ap: float,
) -> RunConfig:
    """Find in seconds what would otherwise stop a run after an hour.

    Args:
        preset_name: See `polarmask.config.presets`.
        overrides: As for `read_settings`.
        on: `here` or `pytorchjob`.
        job: The pods of a PyTorchJob.
        nodes: Machines to train on.
        min_nodes: Fewest that a PyTorchJob goes on with; 0 if there are always all.
        processes_per_node: Training processes on each; 0 if the launcher is to choose.
        floor_ap: Mask AP in [0, 1].

    Raises:
        ConfigError: Says which parameter of the pipeline can't work.
    """
    config = read_settings(preset_name, overrides)
    check_place(on, nodes)
    if processes_per_node < 0:
        raise ConfigError(
            f"train_processes_per_node is {processes_per_node}: give 1 or more, or 0 to "
            "fit them to the machine"
        )
    processes = processes_per_node
    if on == ON_CLUSTER:
        processes = job.processes_per_node(processes_per_node)
    if processes:
        check_shares(
            config.optim.batch_size, nodes=nodes, min_nodes=min_nodes, processes_per_node=processes
        )
    if not 0 <= floor_ap <= 1:
        raise ConfigError(f"eval_floor_ap is {floor_ap}: mask AP lies in [0, 1]")
    return config


def check_place(on: str, nodes: int) -> None:
    """Raise ConfigError unless so many machines can train there."""
    if on not in (HERE, ON_CLUSTER):
        raise ConfigError(f"train_on is {on!r}; there are: {HERE}, {ON_CLUSTER}")
    _check_nodes(nodes)
    if on == HERE and nodes > 1:
        raise ConfigError(
            f"train_nodes is {nodes}: a step trains on its own machine; take train_on={ON_CLUSTER}"
        )


def check_shares(batch_size: int, *, nodes: int, min_nodes: int, processes_per_node: int) -> None:
    """Find out whether a step's images divide among the processes of any number of nodes allowed.

    Args:
        batch_size: Images a step.
        nodes: Most nodes.
        min_nodes: Fewest; 0 if there are always all.
        processes_per_node: At least 1.

    Raises:
        ConfigError: Says which parameter of the pipeline can't work.
    """
    _check_nodes(nodes)
    if not 0 <= min_nodes <= nodes:
        raise ConfigError(
            f"train_min_nodes is {min_nodes}: give 1 to train_nodes, {nodes}, or 0 to need all"
        )
    for number in range(min_nodes or nodes, nodes + 1):
        if batch_size % (number * processes_per_node):
            raise ConfigError(
                f"optim.batch_size {batch_size} does not divide among {number} nodes of "
                f"{processes_per_node} processes; change it with train_set, or train_nodes, "
                "train_min_nodes or train_processes_per_node"
            )


def _check_nodes(nodes: int) -> None:
    if nodes < 1:
        raise ConfigError(f"train_nodes is {nodes}: training needs at least 1 machine")


def choose_workers(data: Path) -> int:
    """Return how many processes make the ray labels of a COCO folder fastest here.

    No parameter: the labels are the same, so their cached result must not depend on it. A process
    takes seconds to start, in which it could have made the labels of a thousand small images.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    images = sum(1 for _ in (data / "images").rglob("*"))
    workers = min(cores or 1, images // _IMAGES_PER_WORKER)
    return workers if workers > 1 else 0


def label_parts(pods: int) -> list[str]:
    """Return each pod's share of the ray labels as text: "1/2", "2/2".

    Raises:
        ConfigError: No pod, or so many that fetching the data costs more than they save.
    """
    if not 1 <= pods <= _MOST_PODS:
        raise ConfigError(f"label_pods is {pods}: give 1 to {_MOST_PODS}")
    return [f"{number}/{pods}" for number in range(1, pods + 1)]


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
