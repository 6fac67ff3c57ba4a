"""The page that compares a candidate with the champion."""

from dataclasses import replace
from pathlib import Path

from polarmask.report.no_champion import no_champion_page
from polarmask_components.registry.champion import UNUSABLE, ChampionScore, judge_version
from polarmask_components.registry.registry import Registry


def compare_with_champion(
    registry: Registry, champion: ChampionScore, *, model: Path, result: Path, data: Path
) -> str:
    """Return an HTML page; without a champion that can be evaluated, it says why.

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

    from polarmask.evaluation.evaluate import Evaluation
    from polarmask.evaluation.predict_split import predict_split
    from polarmask.inference.predictor import Predictor
    from polarmask.report.comparison import Compared, changed_images, comparison_page

    try:
        judged = champion.judged or judge_version(registry, champion.version, data)
    except UNUSABLE as error:
        reason = f"Champion {champion.version} can't be evaluated: {error}"
        return no_champion_page(reason)
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
