"""Put a model into service on this machine and make it the champion, or change nothing.

    register beside the old version -> ask it with a real image -> promote in the registry
    -> make it the default

Until the registry agreed, all requests are answered by the old version. A run that ends between
the last two leaves a server behind its registry; whoever comes next brings it to the registry's
champion.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from polarmask.config.settings import to_dict
from polarmask.engines.ranking import EngineRanking
from polarmask.errors import PolarMaskError
from polarmask.inference.model_folder import read_card, version_of
from polarmask_components.deploy.local_server import Deployment
from polarmask_components.errors import UnknownVersionError, UnusableModelError
from polarmask_components.registry.registry import Facts, ModelRecord, Registry
from polarmask_serving.archive.build import build_archive
from polarmask_serving.archive.read import read_archive
from polarmask_serving.errors import RegistrationError, ServerError, ServingError
from polarmask_serving.torchserve.record import ServerRecord
from polarmask_serving.torchserve.roll_out import roll_out
from polarmask_serving.torchserve.server import LocalServer

_log = logging.getLogger(__name__)


def facts_of(
    model: Path, metrics: Mapping[str, float], engines: EngineRanking | None = None
) -> Facts:
    """Collect what the registry keeps about a model folder."""
    card = read_card(model)
    return Facts(
        data_commit=card.provenance.get("data_commit", ""),
        data_hash=card.provenance.get("data_hash", ""),
        code_commit=card.provenance.get("code_commit", ""),
        code_version=card.provenance.get("code_version", ""),
        config=to_dict(card.config),
        categories=[asdict(category) for category in card.categories],
        metrics=dict(metrics),
        engines={} if engines is None else engines.to_plain(),
    )


def register(model: Path, facts: Facts, *, name: str, registry: Registry) -> ModelRecord:
    """Return the record of a model folder; pack and store its archive unless it is there already.

    Raises:
        ArchiveError: See `polarmask_serving.archive.build`.
        ModelFormatError: The model, or what was measured of its engines, can't be used.
        RegistryError, StorageError: The registry can't be used.
    """
    version = version_of(model)
    record = registry.find(version)
    if record is not None:
        return record
    known = facts.engines
    report = EngineRanking.from_plain(known, where=f"record of {version}") if known else None
    with TemporaryDirectory() as folder:
        archive = build_archive(
            model,
            Path(folder) / "model.mar",
            name=name,
            version=version,
            engines=report,
            metrics=facts.metrics,
        )
        return registry.add(archive, facts)


def deploy(
    model: Path,
    *,
    facts: Facts,
    name: str,
    target: Path,
    registry: Registry,
    expected: str | None,
    image: bytes,
) -> Deployment:
    """Serve a model folder and promote it.

    Args:
        model: Folder of the candidate.
        facts: For the registry.
        name: Of the model, in URLs.
        target: Folder of the TorchServe of this machine; started if none runs there.
        registry: Holds the champion.
        expected: Version of the champion that the candidate was compared with, or None.
        image: JPEG or PNG the candidate has to answer.

    Raises:
        ServingError: The server does not start, or the new version does not come up or answers
            nonsense.
        ConflictError: Another run promoted meanwhile.
        RegistryError, StorageError: The registry can't be used.

    Whatever is raised, the version that was served before still is.
    """
    record = register(model, facts, name=name, registry=registry)
    version = record.version
    server = _attach(target, name, registry)
    try:
        with TemporaryDirectory() as folder:
            archive = read_archive(registry.fetch(version, Path(folder) / "model.mar"))
            outcome = roll_out(
                server,
                archive,
                image=image,
                confirm=lambda: registry.promote(version, expected=expected),
            )
    finally:
        server.stop_if_idle()
    if not outcome.promoted and registry.champion_version() == version:
        raise ServerError(
            f"{version} is the champion of {registry.where}, but the server did not take it: "
            f"{outcome.reason}; run again, which brings the server to the champion"
        )
    if not outcome.promoted:
        raise ServerError(outcome.reason)
    return Deployment(version, server.predict_url, outcome.answer)


def ask_champion(target: Path, *, name: str, registry: Registry, image: bytes) -> Deployment | None:
    """Return what this machine's champion says to an image; its server is started if need be.

    Args:
        target: Folder of the server.
        name: Of the model, in URLs.
        registry: Says who is the champion.
        image: JPEG or PNG.

    Returns:
        None if nothing was deployed yet.

    Raises:
        ServingError: The server does not start or does not answer.
        RegistryError, StorageError: The registry can't be used.
    """
    record = ServerRecord.read(target)
    if (record is None or record.champion is None) and registry.champion_version() is None:
        return None
    server = _attach(target, name, registry)
    champion = server.champion
    if champion is None:
        server.stop_if_idle()
        raise ServerError(
            f"champion {registry.champion_version()} of {registry.where} can't be served; "
            "the log says why"
        )
    return Deployment(champion, server.predict_url, server.predict(image))


def _attach(target: Path, name: str, registry: Registry) -> LocalServer:
    """Return the server of a folder, which serves the registry's champion if that can be served."""
    try:
        server = LocalServer.attach_or_start(target, name=name)
    except RegistrationError as error:
        _log.warning("what was served last does not come up any more: %s", error)
        LocalServer(target).forget_champion()
        server = LocalServer.attach_or_start(target, name=name)
    try:
        _follow(server, registry)
    except (UnusableModelError, UnknownVersionError, PolarMaskError, ServingError) as error:
        # It must not stand in the way of a better one; what answers goes on answering.
        _log.warning("the registry's champion can't be served: %s", error)
    except BaseException:
        server.stop_if_idle()
        raise
    return server


def _follow(server: LocalServer, registry: Registry) -> None:
    with server.alone(), TemporaryDirectory() as folder:
        champion = registry.champion_version()
        if champion is None or champion == server.champion:
            return
        archive = read_archive(registry.fetch(champion, Path(folder) / "model.mar"))
        server.keep_only_champion()
        server.register(archive)
        server.set_default(champion)
        server.keep_only_champion()
