"""What a pipeline run needs, here or on a cluster, checked before it begins."""

import logging

from polarmask.errors import ConfigError
from polarmask_components.checks.planned_run import PlannedRun
from polarmask_components.deploy.trial.settings import read_trial
from polarmask_components.errors import PreflightError
from polarmask_components.notification import check_webhook
from polarmask_components.parameters.label_work import label_shards
from polarmask_components.storage.objects import local_folder
from polarmask_components.training.initial_model import check_initial
from polarmask_serving.archive.names import check_url_name
from polarmask_serving.torchserve.launch import check_installed

logger = logging.getLogger(__name__)


def check_settings(run: PlannedRun) -> None:
    """Raise an error for parameters that can't work anywhere; asks no network.

    Raises:
        ConfigError: Names the parameter.
        ArchiveError: A name that fits no URL.
        StorageError: A target that is neither a Deployment nor a folder.
        PreflightError: Places that pods of a cluster can't use; a line each.
    """
    _check_values(run)
    problems = list(run.problems_of_places())
    if problems:
        raise PreflightError("\n".join(problems))


def check_run(run: PlannedRun) -> None:
    """Raise an error for what would stop the run later.

    Raises:
        ConfigError: Names the parameter that can't work.
        ArchiveError: A name that fits no URL.
        StorageError: A target that is neither a Deployment nor a folder.
        ServerError: TorchServe is not installed where it is to run.
        PreflightError: A cluster lacks something; all of it, a line each.
        LaunchError: A pod like the training's does not start, or can't use object storage.
    """
    _check_values(run)
    if not run.deploys_to_cluster:
        check_installed()
    if run.training_request.on_cluster or run.deploys_to_cluster:
        # Imports the Kubernetes client, which takes a second: too long for runs without a cluster.
        from polarmask_components.checks.cluster_checks import check_cluster

        for note in check_cluster(run):
            logger.info("%s", note)
    if run.training_request.on_cluster:  # last: it needs all of that
        from polarmask_components.checks.storage_probe import check_pods

        for note in check_pods(run.training_request):
            logger.info("%s", note)


def _check_values(run: PlannedRun) -> None:
    check_webhook(run.webhook)
    label_shards(run.label_pods)
    read_trial(run.trial, run.target)
    on_cluster = run.training_request.on_cluster or run.deploys_to_cluster
    check_initial(run.initial, on_cluster=on_cluster)
    if not 0 <= run.floor_ap <= 1:
        raise ConfigError(f"eval_floor_ap is {run.floor_ap}: mask AP is in [0, 1]")
    if not 0 <= run.max_problems <= 1:
        raise ConfigError(f"data_max_problems is {run.max_problems}: a share is in [0, 1]")
    check_url_name("deploy_model_name", run.model_name)
    if not run.deploys_to_cluster:
        local_folder(run.target)
