"""The pipeline's parameter `train_init`: the model that a training starts from.

Preflight fixes it once, as a place and a hash, and the train step fetches what has this hash. So a
step that is repeated or reused did the same, whatever is the champion by then. Pods of a training
job get it as they get data and labels, from the job's storage.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from polarmask.config.settings import RunConfig
from polarmask.config.validation import read_settings
from polarmask.errors import ConfigError
from polarmask.system.files import sha256_of_file, sha256_of_files, tree_sha256
from polarmask.system.redaction import redact
from polarmask_components.errors import DamagedObjectError
from polarmask_components.parameters.training_request import InitialModel
from polarmask_components.registry.registry import Registry
from polarmask_components.storage.objects import fetch_file

logger = logging.getLogger(__name__)

CHAMPION = "champion"
INPUT = "init"
"""Name of the folder that holds the model, among the inputs of a job."""
_ADDRESSES = ("s3://", "http://", "https://")
_DIGITS = 12


def check_initial(text: str, *, on_cluster: bool) -> None:
    """Raise ConfigError for a `train_init` that can't work; looks at nothing.

    Args:
        text: The parameter.
        on_cluster: Steps or training run in pods, which share no disk.
    """
    if text in ("", CHAMPION) or text.startswith(_ADDRESSES):
        return
    if "://" in text or on_cluster:
        raise ConfigError(
            f"train_init is {redact(text)!r}: on a cluster give champion, s3://bucket/key or an "
            "http(s) address of an archive (.mar); on this machine also a path"
        )


@dataclass(frozen=True)
class Start:
    """What a training starts from."""

    model: InitialModel | None
    """None: from scratch."""
    line: str
    """For people; empty without `train_init`."""
    decides: str
    """What of it makes two runs differ, for `settings_id`."""


def find_start(text: str, registry: Registry, config: RunConfig) -> Start:
    """Fix what a training starts from.

    Args:
        text: `champion`, an address or a path, as `polarmask train --init-from` takes it, or "".
        registry: Of the champion.
        config: Of the training.

    Raises:
        ConfigError: There is nothing to start from at this place, or it is of another network.
        ModelFormatError, CheckpointError: It is no model.
        ComponentError: The place or the registry can't be used.
    """
    if not text:
        return Start(None, "", "")
    is_champion = text == CHAMPION
    model = _champion(registry, config) if is_champion else _published(text, config)
    line = (
        f"training starts from {model.name}"
        if model
        else (f"training starts from scratch: {registry.where} has no champion yet")
    )
    logger.info("%s", line)
    # Not which champion: on a schedule, each run would be due because of the one before.
    return Start(model, line, text if is_champion or model is None else model.sha256)


@contextmanager
def fetched(initial: InitialModel | None) -> Iterator[Path | None]:
    """Yield a folder that holds the model alone, verified; it goes after the block.

    Raises:
        DamagedObjectError: The place holds something else by now.
        StorageError: It can't be read.
    """
    if initial is None:
        yield None
        return
    with TemporaryDirectory() as folder:
        to = Path(folder) / _name_of(initial.place)
        source = Path(initial.place)
        if not _is_address(initial.place) and source.is_dir():
            shutil.copytree(source, to)
            if _hash(to) != initial.sha256:
                raise DamagedObjectError(
                    f"{source} changed since this run began; start the run again"
                )
        else:
            fetch_file(initial.place, to, sha256=initial.sha256)
        yield Path(folder)


def flags_for(folder: Path | None) -> list[str]:
    """Return the flags of `polarmask train` for a folder as `fetched` yields it, or its copy."""
    found = sorted(folder.iterdir()) if folder and folder.is_dir() else []
    return ["--init-from", str(found[0])] if found else []


def _published(text: str, config: RunConfig) -> InitialModel:
    from polarmask.model_sources.open_model import open_weights  # imports torch

    with TemporaryDirectory() as folder:
        found = _copy_of(text, Path(folder)) if _is_address(text) else _local(Path(text))
        # A damaged one, or one of another network, is found here, before hours of work.
        _check_fit(open_weights(found).config, config)
        place = text if _is_address(text) else str(found)
        sha256 = _hash(found)
    # The query of an address may be a signature, and `name` becomes part of the model.
    shown = text.partition("?")[0] if _is_address(text) else text
    return InitialModel(place=place, sha256=sha256, name=f"{redact(shown)} {sha256[:_DIGITS]}")


def _champion(registry: Registry, config: RunConfig) -> InitialModel | None:
    champion = registry.champion()
    if champion is None:
        return None
    _check_fit(read_settings(RunConfig, champion.facts.config, name="champion"), config)
    return InitialModel(
        place=registry.archive_uri(champion),
        sha256=champion.archive_sha256,
        name=f"champion {champion.version}",
    )


def _check_fit(given: RunConfig, own: RunConfig) -> None:
    """Raise ConfigError if too few parameters fit, at no cost in memory."""
    import torch

    from polarmask.network.detector import PolarMask
    from polarmask.training.initial import InitialWeights, start_from

    with torch.device("meta"):
        weights = PolarMask(given.model).state_dict()
        try:
            start_from(PolarMask(own.model), InitialWeights("train_init", given, weights, ()), ())
        except ConfigError as error:
            raise ConfigError(
                f"{str(error).partition(';')[0]}; it was trained with preset {given.name}: give "
                "train_preset and train_set of that training"
            ) from error


def _copy_of(address: str, folder: Path) -> Path:
    to = folder / _name_of(address)
    fetch_file(address, to, sha256=None)
    return to


def _local(path: Path) -> Path:
    from polarmask.model_sources.open_model import weights_in  # imports torch

    found = weights_in(path.resolve())
    if not found.exists():
        raise ConfigError(f"train_init is {path}, and there is no such file or folder")
    return found


def _is_address(text: str) -> bool:
    return text.startswith(_ADDRESSES)


def _name_of(place: str) -> str:
    """Return a name by which `--init-from` knows what it is."""
    path = urlsplit(place).path if _is_address(place) else place
    suffix = PurePosixPath(path).suffix
    return f"model{suffix}" if suffix == ".mar" else "model"


def _hash(path: Path) -> str:
    return tree_sha256(sha256_of_files(path)) if path.is_dir() else sha256_of_file(path)
