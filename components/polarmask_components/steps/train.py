"""Step: train, on this machine or as a PyTorchJob on a cluster."""

from typing import Any

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def train(
    dataset: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    preset: str,
    overrides: str,
    code_version: str,
    model: dsl.Output[dsl.Model],
    run: dsl.Output[dsl.Artifact],
    nodes: int = 1,
    processes_per_node: int = 0,
    on: str = "here",
    job: dict[str, Any] = {},  # noqa: B006  # Kubeflow reads it
    min_nodes: int = 0,
    storage: str = "",
    run_id: str = "",
) -> None:
    """Train, pass the words of the training on, and keep the model.

    Args:
        dataset: COCO folder.
        labels: Label store of the same data.
        preset: Name of a known run.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        code_version: Of the code that trains.
        model: Model folder: weights, config, categories, provenance.
        run: Run folder: config, metrics of each step.
        nodes: Machines; more than one needs a cluster.
        processes_per_node: 0 takes one for each GPU, or what the CPU's cores allow.
        on: `here`, with torchrun as a child of this step, or `pytorchjob`.
        job: Of a PyTorchJob: fields of `job_settings.JobSettings`.
        min_nodes: Of a PyTorchJob: goes on with so many when nodes are taken away; 0 needs all.
        storage: Of a PyTorchJob: s3://bucket/prefix for checkpoints and result.
        run_id: Of a PyTorchJob: the same each time this run is tried, to find its job again. Empty
            takes the name of the workflow that the step is in, and spoils no caching.
    """
    from pathlib import Path

    from polarmask_components.run.code_version import code_commit
    from polarmask_components.run.run_settings import ON_CLUSTER, check_place, read_settings
    from polarmask_components.training.torchrun import choose_processes, train_here, training_flags

    provenance = {
        "data_commit": dataset.metadata["data_commit"],
        "data_hash": dataset.metadata["data_hash"],
        "code_commit": code_commit(),
        "code_version": code_version,
    }
    batch_size = read_settings(preset, overrides).optim.batch_size
    flags = training_flags(preset, overrides, provenance)
    check_place(on, nodes)
    if on == ON_CLUSTER:
        from polarmask_components.training.cluster_training import (
            ClusterRequest,
            StoredFolder,
            train_on_cluster,
        )

        train_on_cluster(
            ClusterRequest(
                nodes=nodes,
                min_nodes=min_nodes,
                processes_per_node=processes_per_node,
                job=job,
                storage=storage,
                run_id=run_id,
            ),
            data=StoredFolder(dataset.uri, Path(dataset.path)),
            labels=StoredFolder(labels.uri, Path(labels.path)),
            flags=flags,
            batch_size=batch_size,
            model=Path(model.path),
            run=Path(run.path),
        )
    else:
        train_here(
            data=Path(dataset.path),
            labels=Path(labels.path),
            flags=flags,
            processes=processes_per_node or choose_processes(batch_size),
            model=Path(model.path),
            run=Path(run.path),
        )
    model.metadata.update(provenance)
