"""Step: fail in seconds instead of after an hour. Never cached."""

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
    storage_secret: str = "polarmask-s3",  # noqa: S107  # its name only
    max_problems: float = 0.02,
    eval_gpus: int = 0,
    eval_memory: str = "16Gi",
    label_device: str = "cpu",
    label_memory: str = "16Gi",
    initial: str = "",
) -> NamedTuple(  # type: ignore[valid-type]  # the form KFP asks for
    "Checked",
    training_request=str,
    label_settings=str,
    label_shards=List[str],  # noqa: UP006 as above
    settings_id=str,
    train_memory=str,
    gpu_resource=str,
    eval_gpus=str,
    label_gpus=str,
    serving_gpu=str,
    serving_device=str,
    starts_from=str,
):
    """Check the parameters, the model registry, and what training and serving need.

    All that a run on a cluster lacks is reported at once: data, rights, storage, images, GPUs,
    quota.

    Args:
        preset: Name of a known run, or auto, which fits the data.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        nodes: Machines to train on.
        processes_per_node: Training processes on each; 0 fits them to the machine.
        floor_ap: Lowest mask AP that may be served, in [0, 1].
        registry: Folder or s3://bucket/prefix of the model registry.
        model_name: Model name in the server's URLs.
        webhook: Address that gets the final status of the run; empty for none.
        repository: Git checkout or URL of the data. Checked for runs on a cluster only.
        revision: Commit, tag or branch of it.
        target: kubernetes://NAMESPACE/NAME of a Deployment, or folder for the pod of this machine.
        on: Where to train: `auto`, `pytorchjob`, `trainjob` or `here`.
        job: Pods of the training job: fields of `job_settings.JobSettings`.
        min_nodes: Nodes that an elastic training job can continue with; 0 needs all.
        storage: s3://bucket/prefix for checkpoints and result of the training job.
        label_pods: Pods that make the ray labels.
        storage_secret: Name of the Secret that gives steps the storage's address and keys.
        trial: How to try the model on live requests: fields of `trial.settings.TrialSettings`.
        max_problems: Largest share of images, and of objects, that may be left out, in [0, 1].
        eval_gpus: GPUs of each step that evaluates.
        eval_memory: Memory limit of these steps, as Kubernetes writes it.
        label_device: Where the label pods work: `cpu` or `cuda`.
        label_memory: Memory limit of the steps that read all data.
        initial: Model to start the training from: `champion`, s3:// or http(s) address, path.

    Returns:
        training_request: What to train and where, as JSON, for `train`.
        label_settings: What ray labels depend on, as JSON.
        label_shards: The shards of each pod: "1/2" and "2/2" are every second one.
        settings_id: Hash of the parameters that decide the result.
        train_memory: Memory limit of the train step.
        gpu_resource: Name of GPUs in this cluster.
        eval_gpus: As given, as text, which Kubeflow needs; empty for none.
        label_gpus: The same for each label pod.
        serving_gpu: Name of the GPUs that the server's pods ask for; empty for none.
        serving_device: What answers requests: `cpu`, `cuda`, or empty for what this machine has.
        starts_from: What the training starts from, in one line; empty without `initial`.
    """
    from collections import namedtuple
    from dataclasses import replace

    from polarmask_components.checks.planned_run import PlannedRun
    from polarmask_components.checks.run_checks import check_run
    from polarmask_components.deploy.serving_device import serving_device
    from polarmask_components.parameters.job_settings import read_job_settings
    from polarmask_components.parameters.label_work import label_settings_text, label_shards
    from polarmask_components.parameters.step_resources import StepResources
    from polarmask_components.parameters.training_request import TrainingRequest
    from polarmask_components.provenance.last_run import settings_id
    from polarmask_components.registry.registry import open_registry
    from polarmask_components.training.initial_model import find_start

    training_request = TrainingRequest(
        preset=preset,
        overrides=overrides,
        on=on,
        nodes=nodes,
        min_nodes=min_nodes,
        processes_per_node=processes_per_node,
        storage=storage,
        job=read_job_settings(job, target=target),
    )
    if on == "auto":
        # Imports the Kubernetes client, which takes a second.
        from polarmask_components.checks.job_kind import with_job_kind

        training_request = with_job_kind(training_request)
    resources = StepResources(
        eval_gpus=eval_gpus,
        eval_memory=eval_memory,
        label_device=label_device,
        label_memory=label_memory,
    )
    check_run(
        PlannedRun(
            training_request=training_request,
            registry=registry,
            repository=repository,
            revision=revision,
            target=target,
            model_name=model_name,
            floor_ap=floor_ap,
            trial=trial,
            label_pods=label_pods,
            storage_secret=storage_secret,
            resources=resources,
            webhook=webhook,
            max_problems=max_problems,
            initial=initial,
        )
    )
    opened = open_registry(registry)
    opened.champion_version()
    opened.check_writable()
    start = find_start(initial, opened, training_request.config)
    deciding = settings_id(
        preset=preset,
        overrides=overrides,
        floor_ap=floor_ap,
        model_name=model_name,
        target=target,
        initial=start.decides,
    )
    device, gpu = serving_device(target)
    checked = {
        "training_request": replace(training_request, initial=start.model).to_json(),
        "label_settings": label_settings_text(training_request),
        "label_shards": label_shards(label_pods),
        "settings_id": deciding,
        "train_memory": training_request.job.memory,
        "gpu_resource": training_request.job.gpu_resource,
        "eval_gpus": resources.eval_gpu_text,
        "label_gpus": resources.label_gpu_text,
        "serving_gpu": gpu,
        "serving_device": device,
        "starts_from": start.line,
    }
    return namedtuple("Checked", checked)(**checked)
