"""Step: decide whether the candidate may be served."""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def gate_model(
    mask_ap: float,
    floor_ap: float,
    verdict: dsl.Output[dsl.Markdown],
    champion_ap: float = -1.0,
    champion_reason: str = "",
) -> bool:
    """Pass or stop a candidate by its COCO mask AP; a tie with the champion passes.

    Args:
        mask_ap: Mask AP of the candidate, in [0, 1].
        floor_ap: Lowest mask AP that may be served, in [0, 1].
        verdict: The reason.
        champion_ap: Mask AP of the champion on the same data, in [0, 1]; -1.0 if there is none.
        champion_reason: Where that number comes from.

    Returns:
        Whether it passes.
    """
    from pathlib import Path

    from polarmask.evaluation.gate import decide
    from polarmask.system.files import write_text

    outcome = decide(
        mask_ap, floor_ap=floor_ap, champion_ap=None if champion_ap < 0 else champion_ap
    )
    write_text(Path(verdict.path), f"{outcome.reason}\n\n{champion_reason}\n")
    return outcome.passed
