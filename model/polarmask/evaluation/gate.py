"""The gate: may this candidate replace the champion? A decision with its reason, without I/O."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate passes, and why in one sentence for the run's page."""

    passed: bool
    reason: str


def decide(candidate_ap: float, *, floor_ap: float, champion_ap: float | None) -> Verdict:
    """Compare COCO mask AP values, all in [0, 1].

    A tie passes: a retrain on newer data should not be blocked by noise.

    Args:
        candidate_ap: Mask AP of the new model. NaN, as COCO gives without objects, never passes.
        floor_ap: Lowest mask AP that may be served at all.
        champion_ap: Mask AP of the served model on the same images; None if there is none.
    """
    if math.isnan(candidate_ap):
        return Verdict(False, "mask AP is not a number: the evaluation found nothing to measure")
    if candidate_ap < floor_ap:
        return Verdict(False, f"mask AP {_ap(candidate_ap)} is below the floor {_ap(floor_ap)}")
    if champion_ap is None:
        return Verdict(
            True,
            f"mask AP {_ap(candidate_ap)} reaches the floor {_ap(floor_ap)}; "
            "there is no champion to compare with",
        )
    if candidate_ap < champion_ap:
        return Verdict(
            False, f"mask AP {_ap(candidate_ap)} is below the champion's {_ap(champion_ap)}"
        )
    return Verdict(
        True,
        f"mask AP {_ap(candidate_ap)} reaches the floor {_ap(floor_ap)} "
        f"and the champion's {_ap(champion_ap)}",
    )


def _ap(value: float) -> str:
    """Print four digits, so that a candidate that lost by 0.0004 does not look like a tie."""
    return f"{value:.4f}"
