"""Step: keep the record of a candidate that the gate stopped. Never cached."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def record_stop(
    model: dsl.Input[dsl.Model],
    metrics: dsl.Input[dsl.Metrics],
    verdict: dsl.Input[dsl.Markdown],
    registry: str,
    model_name: str,
) -> str:
    """Keep why a candidate is not in service, with its settings and metrics, without its weights.

    If the registry can't keep it, this says so and fails nothing: the run has decided.

    Args:
        model: Model folder.
        metrics: Metrics of the model on this data.
        verdict: Reason of the gate.
        registry: Folder or s3://bucket/prefix of the model registry.
        model_name: Model name in URLs; a part of the version.

    Returns:
        The candidate's version.
    """
    import logging
    from pathlib import Path

    from polarmask.inference.model_folder import version_of
    from polarmask_components.deploy.register_model import facts_of
    from polarmask_components.errors import ComponentError
    from polarmask_components.registry.registry import open_registry

    version = version_of(Path(model.path), name=model_name)
    facts = facts_of(Path(model.path), metrics=metrics.metadata)
    reason = Path(verdict.path).read_text(encoding="utf-8").splitlines()[0]
    try:
        open_registry(registry).record_stop(version, facts, f"the gate: {reason}")
    except ComponentError as error:
        logging.getLogger(__name__).warning("the reason was not kept: %s", error)
    return version
