"""Step: stop early if champion and data have different categories. Never cached."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def check_champion(dataset: dsl.Input[dsl.Dataset], registry: str) -> str:
    """Stop the run before it trains, if champion and data have different categories.

    Args:
        dataset: COCO folder that the candidate learns from.
        registry: Folder or s3://bucket/prefix of the model registry.

    Returns:
        A sentence about the champion.
    """
    from polarmask_components.registry.champion import check_same_task
    from polarmask_components.registry.registry import open_registry
    from polarmask_components.step_inputs import folder_of

    return check_same_task(open_registry(registry), folder_of(dataset))
