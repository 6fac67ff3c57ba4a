"""Turn a model folder into a registered archive."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from polarmask.config.settings import to_dict
from polarmask.engines.ranking import EngineRanking
from polarmask.inference.model_folder import read_card, version_of
from polarmask_components.registry.registry import Facts, ModelRecord, Registry
from polarmask_serving.archive.build import build_archive


def register_model(
    model: Path,
    *,
    name: str,
    metrics: Mapping[str, float],
    registry: Registry,
    engines: EngineRanking | None = None,
) -> ModelRecord:
    """Return the record of a model folder; pack and store its archive unless it is there already.

    Args:
        model: Folder.
        name: Of the model, in URLs.
        metrics: Of the model on the data that its card names.
        registry: Where to look and to store.
        engines: Ranking of engines; the archive gets the fastest one.

    Raises:
        ArchiveError: See `polarmask_serving.archive.build`.
        ModelFormatError: The folder is no model.
        ComponentError: The registry can't be used.
    """
    version = version_of(model, name=name)
    record = registry.find(version)
    if record is not None:
        return record
    facts = facts_of(model, metrics=metrics, engines=engines)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "model.mar"
        archive = build_archive(
            model, out, name=name, version=version, engines=engines, metrics=metrics
        )
        return registry.add(archive, facts)


def facts_of(
    model: Path, *, metrics: Mapping[str, float], engines: EngineRanking | None = None
) -> Facts:
    """Return what a registry keeps of a model folder besides its bytes."""
    card = read_card(model)
    known = card.provenance
    return Facts(
        data_commit=known.get("data_commit", ""),
        data_hash=known.get("data_hash", ""),
        code_commit=known.get("code_commit", ""),
        code_version=known.get("code_version", ""),
        config=to_dict(card.config),
        categories=[asdict(category) for category in card.categories],
        metrics=dict(metrics),
        engines={} if engines is None else engines.to_plain(),
    )
