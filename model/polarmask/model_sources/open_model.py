"""Open a model from a folder, a run, a checkpoint, an archive, or a server's URL."""

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import torch

from polarmask.engines.torch_engines import Eager
from polarmask.errors import DataError, ModelFormatError
from polarmask.inference.image_files import Finder
from polarmask.inference.model_folder import ModelCard, is_model_folder, load_model
from polarmask.inference.predictor import Predictor
from polarmask.inference.tiles import TileSize
from polarmask.network.backbone_weights import download
from polarmask.network.detector import PolarMask
from polarmask.system.device import find_device
from polarmask.system.files import check_zip
from polarmask.system.redaction import redact
from polarmask.training.checkpoint import load_checkpoint
from polarmask.training.initial import InitialWeights
from polarmask.training.run_folder import CHECKPOINT

_CLIENTS = "polarmask.clients"  # entry points: this area must not know the serving area (ADR 0016)
_NO_CLIENT = "install this project with its extra `serving`"


def open_model(
    source: str | Path,
    *,
    device: str | torch.device | None = "cpu",
    threads: int | None = None,
    tile: TileSize = "auto",
    engine: str | None = None,
) -> Predictor:
    """Open a model.

    Args:
        source: Model folder, run folder (its model, or its checkpoint while it trains),
            `checkpoint.pt`, or TorchServe archive (`.mar`).
        device: "cpu" or "cuda"; None takes CUDA where there is one.
        threads: CPU threads; None leaves torch's choice.
        tile: Side of the tiles of large images, see `Predictor.load`.
        engine: What runs the network, see `Predictor.load`. A checkpoint runs as it is.

    Raises:
        ModelFormatError: None of these, or a damaged one.
        CheckpointError: The checkpoint can't be read.
    """
    with _located(source) as path:
        if path.is_file():
            return _open_checkpoint(path, device, tile)
        return Predictor.load(path, device=device, threads=threads, tile=tile, engine=engine)


def open_weights(source: str | Path) -> InitialWeights:
    """Open the weights of a model, to start a training from.

    Args:
        source: As for `open_model`, or the URL of an archive.

    Raises:
        ModelFormatError, CheckpointError: As for `open_model`.
        ConfigError: The URL can't be read.
    """
    local = download(str(source)) if str(source).startswith(("http://", "https://")) else source
    with _located(local) as path:
        if path.is_file():
            state = load_checkpoint(path)
            return InitialWeights(str(source), state.config, state.weights(), state.categories)
        detector, card = load_model(path)
        return InitialWeights(str(source), card.config, detector.state_dict(), card.categories)


@contextmanager
def _located(source: str | Path) -> Iterator[Path]:
    """Yield a model folder, which need not exist, or a checkpoint; archives are unpacked."""
    path = Path(source)
    if path.suffix == ".mar":
        with tempfile.TemporaryDirectory() as folder:
            yield _unpacked(path, Path(folder))
        return
    yield weights_in(path)


def weights_in(path: Path) -> Path:
    """Return what of a run holds its weights, the model or the checkpoint; else the path itself."""
    if path.is_dir() and not is_model_folder(path):
        if is_model_folder(path / "model"):
            return path / "model"
        if (path / CHECKPOINT).is_file():
            return path / CHECKPOINT
    return path


def _unpacked(path: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, size=path.stat().st_size)
            names = [name for name in archive.namelist() if name.startswith("model/")]
            archive.extractall(folder, names)
    # RuntimeError: encrypted, or packed in an unknown way.
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelFormatError(
            f"{path} is not an archive of a model ({error}); "
            "build one with `python -m polarmask_serving archive`"
        ) from error
    return folder / "model"


def _open_checkpoint(path: Path, device: str | torch.device | None, tile: TileSize) -> Predictor:
    """Load the averaged weights if the run averages, else the current ones."""
    state = load_checkpoint(path)
    detector = PolarMask(state.config.model)
    detector.load_state_dict(state.weights())
    own = find_device(device)
    card = ModelCard(state.config, state.categories, {}, {"steps": state.step})
    return Predictor(Eager(detector.to(own).eval()), card, own, tile=tile)


def open_server(url: str, *, token: str | None = None, in_tiles: bool = True) -> Finder:
    """Open a server that answers for a model, with the client that the serving package installs.

    Args:
        url: Of its predictions.
        token: Access token, if the server wants one.
        in_tiles: False asks it to cut no image into tiles.

    Raises:
        DataError: No client is installed, or the URL can't be one of a server.
    """
    for client in entry_points(group=_CLIENTS, name="http"):
        try:
            opener = client.load()
        except ImportError as error:
            raise DataError(f"no client for {redact(url)} ({error}); {_NO_CLIENT}") from error
        finder: Finder = opener(url, token=token, in_tiles=in_tiles)
        return finder
    raise DataError(f"no client for {redact(url)}; {_NO_CLIENT}")
