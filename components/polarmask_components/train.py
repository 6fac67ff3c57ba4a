"""Step: train on this machine. A PyTorchJob launcher can take this signature over."""

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
) -> None:
    """Start torchrun, pass its words on, and keep the model.

    Args:
        dataset: COCO folder.
        labels: Label store of the same data.
        preset: Name of a known run.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        code_version: Of the code that trains.
        model: Model folder: weights, config, categories, provenance.
        run: Run folder: config, checkpoint, metrics of each step.
        nodes: Machines; more than one needs a cluster.
        processes_per_node: 0 takes one for each GPU, or what the CPU's cores allow.
    """
    from pathlib import Path

    from polarmask_components.code_version import code_commit
    from polarmask_components.errors import LaunchError
    from polarmask_components.run_settings import read_settings
    from polarmask_components.torchrun import (
        choose_processes,
        keep_model,
        run_to_end,
        training_command,
    )

    if nodes != 1:
        raise LaunchError(f"nodes is {nodes}: on this machine only 1 will do")
    provenance = {
        "data_commit": dataset.metadata["data_commit"],
        "data_hash": dataset.metadata["data_hash"],
        "code_commit": code_commit(),
        "code_version": code_version,
    }
    batch_size = read_settings(preset, overrides).optim.batch_size
    command = training_command(
        data=Path(dataset.path),
        labels=Path(labels.path),
        out=Path(run.path),
        preset=preset,
        overrides=overrides,
        processes=processes_per_node or choose_processes(batch_size),
        provenance=provenance,
    )
    run_to_end(command)
    keep_model(Path(run.path), Path(model.path))
    model.metadata.update(provenance)
