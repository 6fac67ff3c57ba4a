"""The champion's number, on the same data and by the same code as the candidate's."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from polarmask_components.registry import Registry


@dataclass(frozen=True)
class ChampionScore:
    """What the candidate has to reach."""

    mask_ap: float | None
    """In [0, 1]; None if there is no champion."""
    version: str
    """Empty if there is no champion."""
    reason: str
    """Where the number comes from, for people."""


def measure_champion(
    registry: Registry, *, data: Path, data_hash: str, code_version: str
) -> ChampionScore:
    """Return the champion's mask AP on the val split of this data.

    A number measured on other data or by other code says nothing about the candidate, so then the
    champion is fetched and measured again.

    Raises:
        RegistryError: The registry can't be used.
        DataError: The champion was trained on categories that mean something else.
    """
    champion = registry.champion()
    if champion is None:
        return ChampionScore(None, "", "there is no champion yet")
    facts = champion.facts
    who = f"champion {champion.version}"
    if (facts.data_hash, facts.code_version) == (data_hash, code_version):
        known = facts.metrics["mask_ap"]
        return ChampionScore(known, champion.version, f"{who}: mask AP {known:.4f}, as registered")

    from polarmask.evaluate import evaluate

    with TemporaryDirectory() as folder:
        model = registry.fetch(champion.version, Path(folder) / "model")
        measured = evaluate(model, data).mask_ap
    other = "other data" if facts.data_hash != data_hash else "other code"
    return ChampionScore(
        measured,
        champion.version,
        f"{who}: mask AP {measured:.4f} on this data, measured again because its registered "
        f"{facts.metrics['mask_ap']:.4f} comes from {other}",
    )
