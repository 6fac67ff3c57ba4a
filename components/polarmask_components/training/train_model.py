"""Training as the step sees it: in the step itself, or as a job on the cluster."""

from collections.abc import Mapping
from pathlib import Path

from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.training.artifacts import TrainingOutputs


def train_model(
    request: TrainingRequest,
    *,
    data: Path,
    labels: Path,
    provenance: Mapping[str, str],
    outputs: TrainingOutputs,
    run_id: str,
) -> None:
    """Train, and leave the model folder and the run folder.

    Args:
        request: What to train, and where.
        data: COCO folder.
        labels: Label store.
        provenance: Of data and code; becomes part of the model.
        outputs: Where the results go.
        run_id: See `cluster_training.train_on_cluster`.

    Raises:
        LaunchError: The training failed; carries its last lines.
        ComponentError: On the cluster: see `cluster_training.train_on_cluster`.
    """
    flags = request.flags(provenance)
    if not request.on_cluster:
        from polarmask_components.training.initial_model import fetched, flags_for
        from polarmask_components.training.torchrun import choose_processes, train_here

        with fetched(request.initial) as initial:
            train_here(
                data=data,
                labels=labels,
                flags=[*flags, *flags_for(initial)],
                processes=request.processes_per_node
                or choose_processes(request.config.optim.batch_size),
                model=outputs.model,
                run=outputs.run,
            )
        return
    from polarmask_components.training.cluster_training import train_on_cluster

    train_on_cluster(request, data=data, labels=labels, flags=flags, outputs=outputs, run_id=run_id)
