"""The finished model on disk: weights, settings, categories and where it came from.

A folder with `model.safetensors` and `model.json`. Reading it executes no code.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from polarmask.config.settings import RunConfig, from_dict, to_dict
from polarmask.data.coco import Category
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.network.detector import PolarMask
from polarmask.system.files import atomic_path, sha256_of_files, tree_sha256

FORMAT_VERSION = 1
_VERSION_DIGITS = 12
"""Hex digits: enough for 10 million models, and short enough for a URL."""
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model is and how it came to be."""

    config: RunConfig
    categories: tuple[Category, ...]
    """In the order of the network's outputs."""
    provenance: dict[str, str] = field(default_factory=dict)
    """data_commit, data_hash, code_commit, code_version; "" when unknown."""
    training: dict[str, float] = field(default_factory=dict)
    """Steps, epochs, images, processes, seconds, last loss; where the best weights measured were
    kept, `kept_step` and `val_mask_ap`."""


def save_model(folder: Path, detector: PolarMask, card: ModelCard) -> None:
    """Write a model folder; it appears whole or not at all."""
    plain = {
        "format_version": FORMAT_VERSION,
        "config": to_dict(card.config),
        "categories": [asdict(category) for category in card.categories],
        "provenance": card.provenance,
        "training": card.training,
    }
    weights = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / WEIGHTS_FILE)
        (temporary / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it private to its owner
        (temporary / CARD_FILE).write_text(json.dumps(plain, indent=1), encoding="utf-8")


def is_model_folder(folder: Path) -> bool:
    """Tell whether a model lies there whole."""
    return (folder / WEIGHTS_FILE).is_file() and (folder / CARD_FILE).is_file()


def version_of(folder: Path) -> str:
    """Return the version of a model: 12 hex digits that follow from the content of its folder.

    Raises:
        ModelFormatError: The folder holds no files.
    """
    files = sha256_of_files(folder)
    if not files:
        raise ModelFormatError(f"{folder} holds no files; give a model folder, as RUN/model")
    return tree_sha256(files)[:_VERSION_DIGITS]


def read_card(folder: Path) -> ModelCard:
    """Read what a model is, without its weights.

    Raises:
        ModelFormatError: No model folder, or of an unknown format version.
    """
    path = folder / CARD_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFormatError(
            f"{folder} is no model folder ({error}); `polarmask train` writes one to RUN/model"
        ) from error
    version = plain.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelFormatError(
            f"{path} has format version {version}, this code reads {FORMAT_VERSION}; "
            "use the release that wrote it or train again"
        )
    try:
        return ModelCard(
            config=from_dict(plain["config"]),
            categories=tuple(Category(**category) for category in plain["categories"]),
            provenance=plain["provenance"],
            training=plain["training"],
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise ModelFormatError(f"{path} is damaged ({error}); train or fetch it again") from error


def load_model(folder: Path, *, device: str | torch.device = "cpu") -> tuple[PolarMask, ModelCard]:
    """Build the network and fill it; eval mode, channels-last.

    Raises:
        ModelFormatError: Card or weights can't be used.
    """
    card = read_card(folder)
    detector = PolarMask(card.config.model)
    path = folder / WEIGHTS_FILE
    try:
        detector.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelFormatError(f"{path} can't be used: {error}; train or fetch it again") from error
    detector.to(device).to(memory_format=torch.channels_last)
    return detector.eval(), card
