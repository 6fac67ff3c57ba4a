"""Step: fail in seconds instead of after an hour."""

from typing import Any, List, NamedTuple  # noqa: UP035 Kubeflow knows this form only

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def preflight(
    preset: str,
    overrides: str,
    nodes: int,
    processes_per_node: int,
    floor_ap: float,
    registry: str,
    model_name: str,
    webhook: str,
    repository: str = "",
    revision: str = "",
    target: str = "",
    on: str = "here",
    job: dict[str, Any] = {},  # noqa: B006  # Kubeflow reads it
    min_nodes: int = 0,
    storage: str = "",
    label_pods: int = 1,
    trial: dict[str, Any] = {},  # noqa: B006  # Kubeflow reads it
) -> NamedTuple(  # type: ignore[valid-type]  # the form KFP asks for
    "Checked",
    label_settings=str,
    label_parts=List[str],  # noqa: UP006 as above
):
    """Check the parameters, the champion registry, and what training and serving need.

    What a run on a cluster lacks is told all at once: data, rights, storage, images, GPUs, quota.

    Args:
        preset: Name of a known run.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        nodes: Machines to train on.
        processes_per_node: Training processes on each; 0 leaves it to the launcher.
        floor_ap: Lowest mask AP that may be served, in [0, 1].
        registry: Folder or s3://bucket/prefix of the champion registry.
        model_name: In the server's URLs.
        webhook: Address that is told how the run ended; empty for none.
        repository: Git checkout or URL that holds the data. Of use on a cluster only, as revision.
        revision: Commit, tag or branch of it.
        target: kubernetes://NAMESPACE/NAME of a Deployment, or a folder of this machine.
        on: `here` or `pytorchjob`.
        job: Of a PyTorchJob: fields of `job_settings.JobSettings`.
        min_nodes: Of a PyTorchJob: goes on with so many; 0 needs all.
        storage: Of a PyTorchJob: s3://bucket/prefix for checkpoints and result.
        label_pods: Pods that share the work of the ray labels.
        trial: Of the model on live requests: fields of `trial_settings.TrialSettings`.

    Returns:
        label_settings: What ray labels depend on, as JSON.
        label_parts: A share for each pod: "1/2", "2/2".
    """
    from collections import namedtuple

    from polarmask_components.checks.run_checks import PlannedRun, check_run
    from polarmask_components.registry.registry import open_registry
    from polarmask_components.run.notification import check_webhook
    from polarmask_components.run.run_settings import label_parts, label_settings_text

    check_webhook(webhook)
    parts = label_parts(label_pods)
    config = check_run(
        PlannedRun(
            preset=preset,
            overrides=overrides,
            on=on,
            job=job,
            nodes=nodes,
            min_nodes=min_nodes,
            processes_per_node=processes_per_node,
            storage=storage,
            floor_ap=floor_ap,
            registry=registry,
            repository=repository,
            revision=revision,
            target=target,
            model_name=model_name,
            trial=trial,
        )
    )
    opened = open_registry(registry)
    opened.champion_version()
    opened.check_writable()
    Checked = namedtuple("Checked", ("label_settings", "label_parts"))
    return Checked(label_settings_text(config), parts)
