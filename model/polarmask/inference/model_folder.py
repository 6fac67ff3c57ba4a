"""The model folder: `model.safetensors` (weights) and `model.json` (settings, categories, origin).

Reading it executes no code.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from polarmask.config.settings import ModelConfig, RunConfig, to_dict
from polarmask.config.validation import read_settings
from polarmask.data.coco import Category
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.network.detector import PolarMask
from polarmask.system.files import atomic_path, sha256_of_file, tree_sha256
from polarmask.system.formats import JsonFormat

DEFAULT_SCORE = 0.3
"""Lowest score of what a model shows that keeps none of its own."""

_FORMAT = JsonFormat(1, ModelFormatError, "train the model again, or fetch it again")
_VERSION_DIGITS = 12
"""Hex digits: enough for 10 million models, and short enough for a URL."""
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model is and how it was made."""

    config: RunConfig
    categories: tuple[Category, ...]
    """In the order of the network's outputs."""
    provenance: dict[str, str] = field(default_factory=dict)
    """data_commit, data_hash, code_commit, code_version; "" if unknown."""
    training: dict[str, float] = field(default_factory=dict)
    """Steps, epochs, images, processes, seconds, last loss; of a run with validation also
    `kept_step` and `val_mask_ap` of the best weights, which were kept."""
    operating_score: float | None = None
    """Score threshold with the best F1 on the val split, see `Evaluation`; None if the training
    did not find one."""

    @property
    def min_score(self) -> float:
        """Lowest score, in [0, 1], of what is shown unless somebody asks for another."""
        return DEFAULT_SCORE if self.operating_score is None else self.operating_score


def save_model(folder: Path, detector: PolarMask, card: ModelCard) -> None:
    """Write a model folder, atomically; it takes the place of an older model.

    Raises:
        ModelFormatError: Something else is there.
    """
    held = {each.name for each in folder.iterdir()} if folder.is_dir() else {folder.name}
    if folder.exists() and held and not held & {WEIGHTS_FILE, CARD_FILE}:
        raise ModelFormatError(f"{folder} is there and is no model; name another folder")
    plain = {
        "config": to_dict(card.config),
        "categories": [asdict(category) for category in card.categories],
        "provenance": card.provenance,
        "training": card.training,
        "operating_score": card.operating_score,
    }
    weights = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / WEIGHTS_FILE)
        (temporary / WEIGHTS_FILE).chmod(0o644)  # safetensors writes it as 0600
        (temporary / CARD_FILE).write_text(_FORMAT.dump(plain), encoding="utf-8")


def is_model_folder(folder: Path) -> bool:
    """Return whether the folder holds both files of a model."""
    return (folder / WEIGHTS_FILE).is_file() and (folder / CARD_FILE).is_file()


def version_of(folder: Path, *, name: str) -> str:
    """Return the version of a model: 12 hex digits that follow from weights, card and name.

    Args:
        folder: Model folder.
        name: What the model is served as; equal weights under another name are another archive.

    Raises:
        ModelFormatError: A file is missing.
    """
    files = [folder / file for file in (CARD_FILE, WEIGHTS_FILE)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ModelFormatError(f"{folder} has no {missing[0]}; give a model folder, as RUN/model")
    hashes = {path.name: sha256_of_file(path) for path in files}
    return tree_sha256({**hashes, "name": name})[:_VERSION_DIGITS]


def read_card(folder: Path) -> ModelCard:
    """Read `model.json`, without the weights.

    Raises:
        ModelFormatError: No model folder, or one of an unknown format version.
    """
    path = folder / CARD_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _no_model_folder(folder, error) from error
    plain = _FORMAT.load(text, where=path)
    try:
        card = read_settings(ModelCard, plain)
        "".join(category.name for category in card.categories).encode()
        if not 0 <= card.min_score <= 1:
            raise ConfigError(f"operating_score is {card.operating_score}: needs 0 to 1")
    except (ConfigError, UnicodeEncodeError) as error:  # half a character can't be printed
        raise _FORMAT.damaged(path, error) from error
    outputs = card.config.model.num_classes
    if len(card.categories) != outputs:
        reason = f"{len(card.categories)} categories for {outputs} outputs of the network"
        raise _FORMAT.damaged(path, reason)
    return card


def _no_model_folder(folder: Path, error: OSError) -> ModelFormatError:
    return ModelFormatError(
        f"{folder} is not a model folder ({error}); `polarmask train` writes one to RUN/model"
    )


def load_model(folder: Path, *, device: str | torch.device = "cpu") -> tuple[PolarMask, ModelCard]:
    """Return the network with its weights, in eval mode and channels-last, and its card.

    Raises:
        ModelFormatError: Card or weights can't be used.
    """
    card = read_card(folder)
    path = folder / WEIGHTS_FILE
    try:
        _check_shapes(path, card.config.model)
        detector = PolarMask(card.config.model)
        detector.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise _FORMAT.damaged(path, error) from error
    detector.to(device).to(memory_format=torch.channels_last)
    return detector.eval(), card


def _check_shapes(path: Path, config: ModelConfig) -> None:
    """Raise ValueError unless a file holds this network's weights, at no cost in memory."""
    with torch.device("meta"):
        wanted = {name: tuple(each.shape) for name, each in PolarMask(config).state_dict().items()}
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name)}, {CARD_FILE} says {wanted.get(name)}")
