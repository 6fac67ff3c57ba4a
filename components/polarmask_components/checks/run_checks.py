"""What a run needs, here or on a cluster, checked before it begins."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polarmask.config.settings import RunConfig
from polarmask_components.deploy.deploy_target import read_trial
from polarmask_components.deploy.serving_state import CLUSTER
from polarmask_components.run.job_settings import read_job_settings
from polarmask_components.run.run_settings import ON_CLUSTER, check_settings
from polarmask_serving.archive.names import check_url_name
from polarmask_serving.torchserve.launch import check_installed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The parameters of the pipeline that can be wrong."""

    preset: str
    overrides: str
    on: str
    job: Mapping[str, Any]
    """Fields of `JobSettings`."""
    nodes: int
    min_nodes: int
    processes_per_node: int
    storage: str
    floor_ap: float
    registry: str
    repository: str
    revision: str
    target: str
    model_name: str
    trial: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrialSettings`."""


def check_run(run: PlannedRun) -> RunConfig:
    """Return the config to train with.

    Raises:
        ConfigError: Says which parameter can't work.
        ArchiveError: A name that fits no URL.
        ServerError: TorchServe is not installed where it is to run.
        PreflightError: A cluster lacks something; all of it, a line each.
    """
    job = read_job_settings(run.job)
    trial = read_trial(run.trial, run.target)
    config = check_settings(
        preset_name=run.preset,
        overrides=run.overrides,
        on=run.on,
        job=job,
        nodes=run.nodes,
        min_nodes=run.min_nodes,
        processes_per_node=run.processes_per_node,
        floor_ap=run.floor_ap,
    )
    check_url_name("deploy_model_name", run.model_name)
    serves_here = not run.target.startswith(CLUSTER)
    if serves_here:
        check_installed()
    if run.on == ON_CLUSTER or not serves_here:
        # Brings the Kubernetes client: a second that runs on this machine should not cost.
        from polarmask_components.checks.cluster_checks import ClusterUse, check_cluster

        use = ClusterUse(
            repository=run.repository,
            revision=run.revision,
            registry=run.registry,
            job=job if run.on == ON_CLUSTER else None,
            nodes=run.min_nodes or run.nodes,
            has_master=run.nodes > 1 and not run.min_nodes,
            storage=run.storage,
            target=run.target,
            tries=trial is not None,
        )
        for note in check_cluster(use):
            logger.info("%s", note)
    return config
