"""Step: is there a champion that this data's model can't be compared with? Never cached."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def check_champion(dataset: dsl.Input[dsl.Dataset], registry: str) -> str:
    """Stop the run before it trains, if champion and data are of different categories.

    Args:
        dataset: COCO folder that the candidate learns from.
        registry: Folder or s3://bucket/prefix of the champion registry.

    Returns:
        Who is the champion, for people.
    """
    from pathlib import Path

    from polarmask_components.registry.champion import check_same_task
    from polarmask_components.registry.registry import open_registry

    return check_same_task(open_registry(registry), Path(dataset.path))
