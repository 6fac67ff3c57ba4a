"""Whatever answers for a model: its folder, a run, a checkpoint, an archive, or a server.

Dimension key
    N: instances    R: rays    2: (x, y) in pixels of the given image
"""

import json
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask.checkpoint import load_checkpoint
from polarmask.detector import PolarMask
from polarmask.device import find_device
from polarmask.engines.torch_engines import Eager
from polarmask.errors import DataError, ModelFormatError
from polarmask.inference import Instances, Predictor
from polarmask.model_folder import ModelCard, is_model_folder
from polarmask.run_folder import CHECKPOINT

_SECONDS_TO_ANSWER = 60


class Finder(Protocol):
    """Finds instances in images."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Instances]:
        """Return what is in each (H, W, 3) uint8 RGB image."""


def open_model(source: str, *, device: str | None = "cpu", threads: int | None = None) -> Finder:
    """Open what answers for a model.

    Args:
        source: Model folder, run folder (its model, or its checkpoint while it trains),
            `checkpoint.pt`, TorchServe archive (`.mar`), or URL of a server's predictions.
        device: "cpu" or "cuda"; None takes CUDA where there is one. Not for a server.
        threads: CPU threads; None leaves torch's choice.

    Raises:
        ModelFormatError: Nothing of these, or a damaged one.
        CheckpointError: The checkpoint can't be read.
    """
    if source.startswith(("http://", "https://")):
        return Server(source)
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


class Server:
    """A running server, as anybody reaches it; it tells no centres and no rays."""

    def __init__(self, url: str) -> None:
        self._url = url

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Instances]:
        """Send each image as PNG, with no threshold but the model's own.

        Raises:
            DataError: The server can't be reached or refuses the image.
        """
        return [self._predict_one(image) for image in images]

    def _predict_one(self, image: NDArray[np.uint8]) -> Instances:
        _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        request = urllib.request.Request(  # noqa: S310  # open_model lets http and https pass
            self._url,
            data=png.tobytes(),
            headers={"Content-Type": "image/png", "X-Score-Threshold": "0"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER) as answer:  # noqa: S310
                said = json.load(answer)
            return instances_of_answer(said, (image.shape[0], image.shape[1]))
        except urllib.error.HTTPError as error:
            reason = error.read().decode("utf-8", "replace")[:300]
            raise DataError(f"{self._url} answers {error.code}: {reason}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self._url} gives no predictions ({error}); write the address that the server "
                "names, such as http://127.0.0.1:8080/predictions/polarmask"
            ) from error


def instances_of_answer(answer: Mapping[str, Any], image_hw: tuple[int, int]) -> Instances:
    """Read a server's JSON; centres are NaN and rays are missing.

    Raises:
        KeyError, TypeError, ValueError: It is another server's.
    """
    said = answer["instances"]
    number = len(said)
    polygons = np.array([entry["polygon"] for entry in said], dtype=np.float32)
    return Instances(
        image_hw=image_hw,
        polygons=polygons if number else np.zeros((0, 0, 2), dtype=np.float32),
        boxes_xywh=np.array([e["bbox"] for e in said], dtype=np.float32).reshape(number, 4),
        scores=np.array([entry["score"] for entry in said], dtype=np.float32),
        category_ids=np.array([entry["category_id"] for entry in said], dtype=np.int64),
        category_names=tuple(entry["category"] for entry in said),
        centers=np.full((number, 2), np.nan, dtype=np.float32),
        ray_lengths=np.zeros((number, 0), dtype=np.float32),
        further_parts={
            row: np.array(entry["polygons"][1:], dtype=np.float32)
            for row, entry in enumerate(said)
            if len(entry.get("polygons", ())) > 1
        },
    )
