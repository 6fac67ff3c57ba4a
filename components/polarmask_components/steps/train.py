"""Step: train, on this machine or as a job on the cluster."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def train(
    dataset: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    training_request: str,
    code_version: str,
    model: dsl.Output[dsl.Model],
    run: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    run_id: str = "",
) -> None:
    """Train, show the log of the training, and keep the model.

    Args:
        dataset: COCO folder.
        labels: Label store of the same data.
        training_request: JSON from `preflight`: preset, settings, where to train, number of nodes.
        code_version: Hash of the installed code.
        model: Model folder: weights, config, categories, provenance.
        run: Run folder: config, metrics of each step.
        page: Losses, validation, speed, settings.
        run_id: For a job on the cluster: the same each time this run is retried, to find its job
            again. Empty takes the name of the workflow that the step is in; caching still works.
    """
    from pathlib import Path

    from polarmask.data.summary import summary_counts
    from polarmask.report.training import training_page
    from polarmask.system.files import write_text
    from polarmask.training.run_folder import RunData
    from polarmask_components.parameters.training_request import TrainingRequest
    from polarmask_components.provenance.code_version import code_commit
    from polarmask_components.step_inputs import folder_of
    from polarmask_components.training.artifacts import TrainingOutputs
    from polarmask_components.training.train_model import train_model

    provenance = {
        "data_commit": dataset.metadata["data_commit"],
        "data_hash": dataset.metadata["data_hash"],
        "code_commit": code_commit(),
        "code_version": code_version,
    }
    train_model(
        TrainingRequest.from_json(training_request),
        data=folder_of(dataset),
        labels=folder_of(labels),
        provenance=provenance,
        outputs=TrainingOutputs(model=Path(model.path), run=Path(run.path)),
        run_id=run_id,
    )
    write_text(Path(page.path), training_page(Path(run.path)))
    used = RunData.read(Path(run.path))
    model.metadata.update(provenance | summary_counts(used.splits if used else ()))
