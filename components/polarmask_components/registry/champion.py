"""The champion's mask AP, on the same data and by the same code as the candidate's."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from polarmask.errors import DataError, ModelFormatError
from polarmask_components.errors import (
    OtherCategoriesError,
    UnknownVersionError,
    UnusableModelError,
)
from polarmask_components.registry.registry import ModelRecord, Registry

if TYPE_CHECKING:
    from polarmask.data.coco import CocoData
    from polarmask.evaluation.evaluate import Evaluation
    from polarmask.inference.instances import Instances

UNUSABLE = (UnusableModelError, UnknownVersionError, ModelFormatError)


@dataclass(frozen=True)
class ChampionScore:
    """What the candidate has to reach."""

    mask_ap: float | None
    """In [0, 1]; None if there is no champion, or none that can be evaluated."""
    version: str
    """Empty if there is no champion."""
    reason: str
    """Where the number comes from, for people."""
    judged: "Judged | None" = None
    """If the champion was evaluated again."""


@dataclass(frozen=True)
class Judged:
    """An evaluated model."""

    evaluation: "Evaluation"
    predictions: "Mapping[int, Instances]"
    """By image id."""
    data: "CocoData"


def measure_champion(
    registry: Registry, *, data: Path, data_hash: str, code_version: str
) -> ChampionScore:
    """Return the champion's mask AP on the val split of this data.

    A number from other data or other code can't be compared with the candidate's, so then the
    champion is fetched and evaluated again. One that can't be loaded, as after a change of format,
    has no number: it must not block its successors.

    Raises:
        RegistryError, StorageError: The registry can't be used.
        DataError: The champion was trained on categories that mean something else.
    """
    version = registry.champion_version()
    if version is None:
        return ChampionScore(None, "", "there is no champion yet")
    try:
        return _measure(registry, registry.record(version), data, data_hash, code_version)
    except UNUSABLE as error:
        reason = f"champion {version} can't be evaluated, so the floor alone decides: {error}"
        return ChampionScore(None, version, reason)


def _measure(
    registry: Registry, champion: ModelRecord, data: Path, data_hash: str, code_version: str
) -> ChampionScore:
    facts = champion.facts
    who = f"champion {champion.version}"
    if (facts.data_hash, facts.code_version) == (data_hash, code_version):
        known = facts.metrics["mask_ap"]
        return ChampionScore(known, champion.version, f"{who}: mask AP {known:.4f}, as registered")

    judged = judge_version(registry, champion.version, data)
    mask_ap = judged.evaluation.mask_ap
    other = "other data" if facts.data_hash != data_hash else "other code"
    return ChampionScore(
        mask_ap,
        champion.version,
        f"{who}: mask AP {mask_ap:.4f} on this data, evaluated again because its registered "
        f"{facts.metrics['mask_ap']:.4f} comes from {other}",
        judged,
    )


def judge_version(registry: Registry, version: str, data: Path) -> Judged:
    """Evaluate a registered model on the val split, in the precision that candidates have.

    Raises:
        RegistryError, StorageError, ModelFormatError: The model can't be fetched or loaded.
        DataError: It was trained on categories that mean something else.
    """
    from polarmask.data.coco import load_coco
    from polarmask.engines.interface import SAFE_ENGINE
    from polarmask.evaluation.whole_machine import evaluate_on_machine
    from polarmask.model_sources.open_model import open_model

    with TemporaryDirectory() as folder:
        archive = registry.fetch(version, Path(folder) / "model.mar")
        # Its fastest engine may cost up to 0.3 points of mask AP: candidates would win by that.
        open_champion = partial(open_model, archive, engine=SAFE_ENGINE)
        predictor = open_champion(device=None)
        images = predictor.card.config.input
        split = load_coco(data, "val", check_pixels=True, config=images)
        return Judged(*evaluate_on_machine(predictor, open_champion, split), split)


def check_same_task(registry: Registry, data: Path) -> str:
    """Return a sentence about whether the champion can be compared with models of this data.

    Raises:
        RegistryError, StorageError: The registry can't be used.
        OtherCategoriesError: The champion was trained for other categories than this data has.
    """
    version = registry.champion_version()
    if version is None:
        return "there is no champion yet"

    from polarmask.data.coco import Category, read_categories
    from polarmask.data.match_categories import require_same_meaning

    try:
        known = [Category(**each) for each in registry.record(version).facts.categories]
    except (*UNUSABLE, TypeError) as error:
        return f"champion {version} can't be compared: {error}"
    categories = read_categories(data, "val")
    try:
        require_same_meaning(known, categories, known_by="the champion", place=str(data))
        unknown = [category.name for category in known if category not in categories]
        if unknown:
            raise DataError(f"{data} does not have {unknown[0]!r}, which the champion finds")
    except DataError as error:
        raise OtherCategoriesError(
            f"{error}. If the champion of {registry.where} is for another task, give this data a "
            "registry and a server of its own: "
            "--param deploy_registry=FOLDER --param deploy_target=FOLDER"
        ) from error
    return f"champion {version} finds the same categories"
