"""The pipeline: from a revision of the data to a model in service, or to the reason why not."""

from collections.abc import Sequence
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_task import PipelineTask

from polarmask_components.steps.check_champion import check_champion
from polarmask_components.steps.check_changed import check_changed
from polarmask_components.steps.deploy_torchserve import deploy_torchserve
from polarmask_components.steps.evaluate import evaluate
from polarmask_components.steps.evaluate_champion import evaluate_champion
from polarmask_components.steps.gate_model import gate_model
from polarmask_components.steps.ingest_coco import ingest_coco
from polarmask_components.steps.measure_engines import measure_engines
from polarmask_components.steps.notify import notify
from polarmask_components.steps.precompute_rays import precompute_rays
from polarmask_components.steps.precompute_shards import precompute_shards
from polarmask_components.steps.preflight import preflight
from polarmask_components.steps.record_stop import record_stop
from polarmask_components.steps.remember_run import remember_run
from polarmask_components.steps.resolve_data import resolve_data
from polarmask_components.steps.train import train
from polarmask_pipelines.resources import for_compute, for_gpu, for_ops, share_memory


def _present(task: PipelineTask, name: str, *, cached: bool = True) -> None:
    """Name a task in the UI; switch its caching off if its result depends on more than inputs."""
    task.set_display_name(name)
    if not cached:
        task.set_caching_options(enable_caching=False)


def _try_again(*tasks: PipelineTask) -> None:
    """Start tasks again, at most twice, whose pod is lost: repeating them changes no result."""
    for task in tasks:
        task.set_retry(num_retries=2, backoff_duration="10s")


_STORAGE_KEYS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CA_BUNDLE",
    "POLARMASK_STORAGE_CA",
)


# For requests of the deploy step to the server: a token, and TLS.
_SERVER_KEYS = (
    "POLARMASK_TOKEN",
    "POLARMASK_CA",
    "POLARMASK_CLIENT_CERT",
    "POLARMASK_CLIENT_KEY",
)


def _reach_storage(secret: str, *tasks: PipelineTask, and_keys: Sequence[str] = ()) -> None:
    """Give tasks the object storage's address and keys from a Secret; no effect on a laptop.

    The Secret is optional, and so is each key: accounts may have roles instead.

    Args:
        secret: Its name.
        tasks: That need it.
        and_keys: More of its keys.
    """
    keys = [*_STORAGE_KEYS, *and_keys]
    for task in tasks:
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)


@dsl.pipeline(
    name="polarmask-train-and-deploy",
    display_name="PolarMask: train and deploy",
    description="DVC data -> ray labels -> training -> mask AP -> gate -> TorchServe",
)
def train_and_deploy(
    data_max_problems: float = 0.02,
    data_repository: str = ".",
    data_revision: str = "HEAD",
    deploy_model_name: str = "polarmask",
    deploy_registry: str = "s3://polarmask/registry",
    deploy_target: str = "kubernetes://polarmask/polarmask",
    deploy_trial: dict[str, Any] = {},  # noqa: B006 KFP reads defaults from the signature
    eval_floor_ap: float = 0.25,
    eval_gpus: int = 0,
    eval_memory: str = "16Gi",
    label_device: str = "cpu",
    label_memory: str = "16Gi",
    label_pods: int = 1,
    notify_webhook: str = "",
    run_only_if_changed: bool = False,
    storage_secret: str = "polarmask-s3",  # noqa: S107 its name only
    train_init: str = "",
    train_job: dict[str, Any] = {},  # noqa: B006 as above
    train_min_nodes: int = 0,
    train_nodes: int = 1,
    train_on: str = "auto",
    train_preset: str = "coco-r50-1x",
    train_processes_per_node: int = 0,
    train_set: str = "",
    train_storage: str = "s3://polarmask/training",
) -> None:
    """Train, evaluate and serve one model.

    Steps whose inputs did not change are reused; a code change counts as a changed input.

    Args:
        data_max_problems: Largest share of images, and of objects, that may be left out as
            unusable, in [0, 1].
        data_repository: Git checkout or URL that holds data.dvc.
        data_revision: Commit, tag or branch of it.
        deploy_model_name: In the server's URLs.
        deploy_registry: Folder or s3://bucket/prefix of the model registry.
        deploy_target: kubernetes://NAMESPACE/DEPLOYMENT, or a folder for the pod of this machine.
        deploy_trial: Try it first on copies or a share of a cluster's live requests: copies or
            share, minutes, min_requests, min_agreement, max_errors, max_slowdown; {} for no trial.
        eval_floor_ap: Lowest mask AP that may be served, in [0, 1].
        eval_gpus: GPUs of each step that evaluates; 0 for none.
        eval_memory: Memory limit of each step that evaluates or measures engines.
        label_device: Where pods make ray labels: cpu, or cuda, with one GPU each.
        label_memory: Memory limit of each step that ingests data or makes ray labels.
        label_pods: Pods that make the ray labels.
        notify_webhook: http(s) address that gets the final status; empty for none.
        run_only_if_changed: Stop early if data, code and settings are those of the last run.
        storage_secret: Name of a Secret with AWS_ENDPOINT_URL and keys, for steps in a cluster.
        train_init: Model whose weights the training starts from: champion, an archive's s3:// or
            http(s) address or, on this machine, a path as for --init-from; empty for none.
        train_job: Pods of the training job: gpus_per_node, memory, tolerations, queue and more.
        train_min_nodes: Nodes that an elastic job can continue with; 0 for a fixed number.
        train_nodes: Machines to train on.
        train_on: auto: as a job of the kind that the cluster has; pytorchjob or trainjob: of this
            kind; here: in the step itself.
        train_preset: Name of a known run, or auto, which fits the data.
        train_processes_per_node: Training processes on each machine; 0 fits them to it.
        train_set: Settings to change, section.field=value, separated by spaces.
        train_storage: s3://bucket/prefix for checkpoints of the training job.
    """
    notified = notify(webhook=notify_webhook, on=train_on, job=train_job, target=deploy_target)
    _present(notified, "Notify", cached=False)
    for_ops(notified)
    with dsl.ExitHandler(notified, name="train-and-deploy"):
        checked = preflight(
            preset=train_preset,
            overrides=train_set,
            nodes=train_nodes,
            processes_per_node=train_processes_per_node,
            floor_ap=eval_floor_ap,
            registry=deploy_registry,
            model_name=deploy_model_name,
            webhook=notify_webhook,
            repository=data_repository,
            revision=data_revision,
            target=deploy_target,
            on=train_on,
            job=train_job,
            min_nodes=train_min_nodes,
            storage=train_storage,
            label_pods=label_pods,
            trial=deploy_trial,
            storage_secret=storage_secret,
            max_problems=data_max_problems,
            eval_gpus=eval_gpus,
            eval_memory=eval_memory,
            label_device=label_device,
            label_memory=label_memory,
            initial=train_init,
        )
        _present(checked, "Preflight", cached=False)

        resolved = resolve_data(repository=data_repository, revision=data_revision).after(checked)
        _present(resolved, "Resolve data version", cached=False)
        data_hash = resolved.outputs["data_hash"]
        code_version = resolved.outputs["code_version"]

        inputs = {
            "data_hash": data_hash,
            "code_version": code_version,
            "settings_id": checked.outputs["settings_id"],
            "registry": deploy_registry,
        }
        changed = check_changed(only_if_changed=run_only_if_changed, **inputs)
        _present(changed, "Check for changes", cached=False)

        _reach_storage(storage_secret, checked, changed)
        for_ops(checked, resolved, changed)

        with dsl.If(changed.outputs["Output"] == True, name="changed"):  # noqa: E712 KFP builds a condition of it
            ingested = ingest_coco(
                repository=data_repository,
                data_commit=resolved.outputs["data_commit"],
                data_hash=data_hash,
                code_version=code_version,
                max_problems=data_max_problems,
            )
            _present(ingested, "Ingest COCO data")
            dataset = ingested.outputs["dataset"]

            comparable = check_champion(dataset=dataset, registry=deploy_registry)
            _present(comparable, "Check champion", cached=False)

            # One pod is a loop, too: an empty one can't be collected on a cluster.
            with dsl.ParallelFor(checked.outputs["label_shards"], name="label-shards") as shard:
                sharded = precompute_shards(
                    dataset=dataset,
                    label_settings=checked.outputs["label_settings"],
                    shard=shard,
                    code_version=code_version,
                    device=label_device,
                ).after(comparable)
                for_gpu(
                    sharded,
                    memory=label_memory,
                    gpu=checked.outputs["gpu_resource"],
                    count=checked.outputs["label_gpus"],
                )
                _try_again(sharded)
                _present(sharded, "Precompute label shards")
            labelled = precompute_rays(
                dataset=dataset,
                shards=dsl.Collected(sharded.outputs["shards"]),
                label_settings=checked.outputs["label_settings"],
                code_version=code_version,
            )
            _present(labelled, "Precompute ray labels")

            trained = train(
                dataset=dataset,
                labels=labelled.outputs["labels"],
                training_request=checked.outputs["training_request"],
                code_version=code_version,
            )
            for_ops(trained, memory=checked.outputs["train_memory"])
            share_memory(trained)  # trains itself with train_on=here
            _present(trained, "Train")
            model = trained.outputs["model"]

            evaluated = evaluate(model=model, dataset=dataset, code_version=code_version)
            _present(evaluated, "Evaluate candidate")

            # After the candidate, as late as possible: another run may promote meanwhile.
            champion = evaluate_champion(
                model=model,
                result=evaluated.outputs["result"],
                dataset=dataset,
                registry=deploy_registry,
                code_version=code_version,
            )
            _present(champion, "Evaluate champion", cached=False)
            for_gpu(
                evaluated,
                champion,
                memory=eval_memory,
                gpu=checked.outputs["gpu_resource"],
                count=checked.outputs["eval_gpus"],
            )

            passed = gate_model(
                mask_ap=evaluated.outputs["Output"],
                floor_ap=eval_floor_ap,
                champion_ap=champion.outputs["mask_ap"],
                champion_reason=champion.outputs["reason"],
            )
            _present(passed, "Gate", cached=False)

            with dsl.If(passed.outputs["Output"] == True, name="passed"):  # noqa: E712 as above
                measured = measure_engines(
                    model=model,
                    dataset=dataset,
                    code_version=code_version,
                    device=checked.outputs["serving_device"],
                )
                for_gpu(measured, memory=eval_memory, gpu=checked.outputs["serving_gpu"])
                _present(measured, "Measure engines")
                _try_again(measured)

                deployed = deploy_torchserve(
                    model=model,
                    engines=measured.outputs["ranking"],
                    sample=evaluated.outputs["sample"],
                    metrics=evaluated.outputs["metrics"],
                    registry=deploy_registry,
                    target=deploy_target,
                    model_name=deploy_model_name,
                    champion_version=champion.outputs["version"],
                    trial=deploy_trial,
                )
                _present(deployed, "Deploy to TorchServe", cached=False)
                _try_again(deployed)  # a lost one may leave a half roll-out, which this one ends
                remembered = remember_run(**inputs).after(deployed)
                _present(remembered, "Remember this run", cached=False)
                _reach_storage(storage_secret, deployed, and_keys=_SERVER_KEYS)
                _reach_storage(storage_secret, remembered)
                for_ops(deployed, remembered)
            with dsl.Else(name="stopped"):
                recorded = record_stop(
                    model=model,
                    metrics=evaluated.outputs["metrics"],
                    verdict=passed.outputs["verdict"],
                    registry=deploy_registry,
                    model_name=deploy_model_name,
                )
                _present(recorded, "Record why not", cached=False)
                remembered = remember_run(**inputs)
                _present(remembered, "Remember this run", cached=False)
                _reach_storage(storage_secret, recorded, remembered)
                for_ops(recorded, remembered)
            for_compute(ingested, labelled, memory=label_memory)
            for_ops(comparable, passed)
            _try_again(ingested, labelled, trained, evaluated, champion)
            _reach_storage(storage_secret, ingested, comparable, trained, champion)
