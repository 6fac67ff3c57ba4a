"""Put a model into service on this machine and make it the champion, or change nothing.

    register beside the old version -> ask it with a real image -> promote in the registry
    -> make it the default

Until the registry agreed, all requests are answered by the old version.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polarmask.config import to_dict
from polarmask.model_folder import read_card
from polarmask_components.local_server import Deployment
from polarmask_components.registry import Facts, Registry
from polarmask_serving.archive import Archive, build_archive
from polarmask_serving.errors import ServingError
from polarmask_serving.record import locked
from polarmask_serving.roll_out import check_answer
from polarmask_serving.server import LocalServer


def facts_of(model: Path, metrics: Mapping[str, float]) -> Facts:
    """Collect what the registry keeps about a model folder."""
    card = read_card(model)
    return Facts(
        data_commit=card.provenance.get("data_commit", ""),
        data_hash=card.provenance.get("data_hash", ""),
        code_commit=card.provenance.get("code_commit", ""),
        code_version=card.provenance.get("code_version", ""),
        config=to_dict(card.config),
        metrics=dict(metrics),
    )


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
        RegistryError: The registry can't be used.

    Whatever is raised, the version that was served before still is.
    """
    version = registry.add(model, facts).version
    server = LocalServer.attach_or_start(target, name=name)
    with TemporaryDirectory() as folder, locked(server.folder):
        archive = build_archive(model, Path(folder) / "model.mar", name=name, version=version)
        try:
            answer = _try_out(server, archive, image)
            registry.promote(version, expected=expected)
            server.set_default(version)
        except BaseException:
            with contextlib.suppress(ServingError):
                server.keep_only_champion()
                if server.champion is None:
                    server.stop()
            raise
        server.keep_only_champion()
    return Deployment(version, server.predict_url, answer)


def _try_out(server: LocalServer, archive: Archive, image: bytes) -> dict[str, Any]:
    server.keep_only_champion()  # frees what a run that was cut off left
    if not server.serves(archive):
        server.register(archive)
    answer = server.predict(image, version=archive.version)
    check_answer(answer, archive)
    return answer
