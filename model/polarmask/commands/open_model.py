"""Whatever answers for a model: its folder, a run, a checkpoint, an archive, or a server."""

import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from polarmask.engines.torch_engines import Eager
from polarmask.errors import DataError, ModelFormatError
from polarmask.inference.model_folder import ModelCard, is_model_folder
from polarmask.inference.predictor import Instances, Predictor
from polarmask.network.detector import PolarMask
from polarmask.system.device import find_device
from polarmask.training.checkpoint import load_checkpoint
from polarmask.training.run_folder import CHECKPOINT

_CLIENTS = "polarmask.clients"  # entry points: this area must not know the serving area (ADR 0016)
_NO_CLIENT = "install this project with its extra `serving`"


class Finder(Protocol):
    """Finds instances in images."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Instances]:
        """Return what is in each (H, W, 3) uint8 RGB image."""


def open_model(source: str, *, device: str | None = "cpu", threads: int | None = None) -> Finder:
    """Open what answers for a model.

    Args:
        source: Model folder, run folder (its model, or its checkpoint while it trains),
            `checkpoint.pt`, or TorchServe archive (`.mar`).
        device: "cpu" or "cuda"; None takes CUDA where there is one.
        threads: CPU threads; None leaves torch's choice.

    Raises:
        ModelFormatError: Nothing of these, or a damaged one.
        CheckpointError: The checkpoint can't be read.
    """
    path = Path(source)
    if path.suffix == ".mar":
        return _open_archive(path, device, threads)
    if path.is_dir() and not is_model_folder(path):
        if is_model_folder(path / "model"):
            path = path / "model"
        elif (path / CHECKPOINT).is_file():
            path = path / CHECKPOINT
    if path.is_file():
        return _open_checkpoint(path, device)
    return Predictor.load(path, device=device, threads=threads)


def _open_archive(path: Path, device: str | None, threads: int | None) -> Predictor:
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            names = [name for name in archive.namelist() if name.startswith("model/")]
            archive.extractall(folder, names)
            return Predictor.load(Path(folder) / "model", device=device, threads=threads)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelFormatError(
            f"{path} is no archive of a model ({error}); "
            "build one with `python -m polarmask_serving archive`"
        ) from error


def _open_checkpoint(path: Path, device: str | None) -> Predictor:
    """Take the averaged weights, where the run averages."""
    state = load_checkpoint(path)
    detector = PolarMask(state.config.model)
    weights = state.detector
    if state.average is not None:
        prefix = "module."
        weights = {
            name.removeprefix(prefix): value
            for name, value in state.average.items()
            if name.startswith(prefix)
        }
    detector.load_state_dict(weights)
    own = find_device(device)
    card = ModelCard(state.config, state.categories, {}, {"steps": state.step})
    return Predictor(Eager(detector.to(own).eval()), card, own)


def open_server(url: str, *, token: str | None = None) -> Finder:
    """Open a server that answers for a model; a package that speaks to servers brings the client.

    Args:
        url: Of its predictions.
        token: That the server wants, if any.

    Raises:
        DataError: No client is installed, or the address can't be one.
    """
    for client in entry_points(group=_CLIENTS, name="http"):
        try:
            opener = client.load()
        except ImportError as error:
            raise DataError(f"no client for {url} ({error}); {_NO_CLIENT}") from error
        finder: Finder = opener(url, token=token)
        return finder
    raise DataError(f"no client for {url}; {_NO_CLIENT}")
