"""Step: mask AP of the champion on the same data. Never cached: champions change."""

from typing import NamedTuple

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def evaluate_champion(
    model: dsl.Input[dsl.Model],
    result: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    registry: str,
    code_version: str,
    note: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
) -> NamedTuple("Champion", mask_ap=float, version=str, reason=str):  # type: ignore[valid-type]  # the form KFP asks for
    """Look up the champion's mask AP; evaluate it again if data or code changed since.

    Args:
        model: Model folder of the candidate.
        result: The candidate's evaluation (JSON).
        dataset: COCO folder that the candidate is evaluated on.
        registry: Folder or s3://bucket/prefix of the model registry.
        code_version: Hash of the installed code.
        note: The champion, and where its number comes from.
        page: Candidate and champion beside each other: curves, categories, images that changed.

    Returns:
        mask_ap: In [0, 1] on the val split of this data; -1.0 if there is no champion, or none
            that can be evaluated.
        version: Of the champion; empty if there is none.
        reason: Where the number comes from, as a sentence.
    """
    from collections import namedtuple
    from pathlib import Path

    from polarmask.system.files import write_text
    from polarmask_components.registry.champion import measure_champion
    from polarmask_components.registry.comparison import compare_with_champion
    from polarmask_components.registry.registry import open_registry
    from polarmask_components.step_inputs import folder_of

    models, data = open_registry(registry), folder_of(dataset)
    found = measure_champion(
        models,
        data=data,
        data_hash=dataset.metadata["data_hash"],
        code_version=code_version,
    )
    write_text(Path(note.path), found.reason + "\n")
    html = compare_with_champion(
        models, found, model=Path(model.path), result=Path(result.path), data=data
    )
    write_text(Path(page.path), html)
    Champion = namedtuple("Champion", ("mask_ap", "version", "reason"))
    mask_ap = -1.0 if found.mask_ap is None else found.mask_ap
    return Champion(mask_ap, found.version, found.reason)
