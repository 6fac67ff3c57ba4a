"""The page that compares a candidate with the champion."""

import logging
from dataclasses import replace
from pathlib import Path

from polarmask.report.no_champion import no_champion_page
from polarmask_components.registry.champion import UNUSABLE, ChampionScore, judge_version
from polarmask_components.registry.registry import Registry

_log = logging.getLogger(__name__)


def compare_with_champion(
    registry: Registry, champion: ChampionScore, *, model: Path, result: Path, data: Path
) -> str:
    """Return an HTML page; without a comparison, it says why. Only the gate decides about a run.

    The champion is evaluated if that is not done yet. The candidate is not evaluated again: it
    predicts the images that changed.

    Args:
        registry: Holds the champion.
        champion: Of it, on this data.
        model: Model folder of the candidate.
        result: Its `evaluation.json`.
        data: COCO folder.
    """
    if not champion.version:
        return no_champion_page(champion.reason)
    try:
        return _comparison(registry, champion, model, result, data)
    except UNUSABLE as error:
        reason = f"Champion {champion.version} can't be evaluated: {error}"
    except Exception as error:  # whatever it is, a page decides nothing
        _log.warning("no comparison with champion %s", champion.version, exc_info=True)
        reason = (
            f"The comparison with champion {champion.version} failed: {type(error).__name__}: "
            f"{error}"
        )
    return no_champion_page(reason)


def _comparison(
    registry: Registry, champion: ChampionScore, model: Path, result: Path, data: Path
) -> str:
    from polarmask.evaluation.evaluate import Evaluation
    from polarmask.evaluation.predict_split import predict_split
    from polarmask.inference.predictor import Predictor
    from polarmask.report.comparison import Compared, changed_images, comparison_page

    judged = champion.judged or judge_version(registry, champion.version, data)
    candidate = Evaluation.from_json(result.read_text(encoding="utf-8"))
    shown = {key for ids in changed_images(candidate, judged.evaluation) for key in ids}
    images = tuple(image for image in judged.data.images if image.id in shown)
    predictor = Predictor.load(model, device=None)
    found = predict_split(predictor, replace(judged.data, images=images))
    return comparison_page(
        Compared("the model of this run", candidate, found),
        Compared(f"version {champion.version}", judged.evaluation, judged.predictions),
        judged.data,
        provenance=predictor.card.provenance,
    )
