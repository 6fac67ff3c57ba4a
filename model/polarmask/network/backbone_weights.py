"""Where a backbone starts from: a file, a URL, a torchvision name, or timm's own weights.

Files may hold the state dict of torchvision's or timm's model, Caffe's weights under torchvision's
names, or a whole detector with a `backbone.` part. Reading them executes no code.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
import torchvision
from torch import Tensor

from polarmask.config.backbones import TIMM
from polarmask.errors import ConfigError
from polarmask.network.backbone import Pyramid
from polarmask.network.timm_backbone import TimmFeatures, pretrained_timm

_HASHED_NAME = re.compile(r"-[0-9a-f]{8,}\.")
"""torch.hub checks a download against the hash in its name; other names have none."""
_COUNTER = "num_batches_tracked"
_OPTIONAL = (_COUNTER, "conv2.offset.weight", "conv2.offset.bias")
_STATISTICS = ("running_mean", "running_var")


def load_backbone_weights(pyramid: Pyramid, source: str) -> None:
    """Fill the ResNet with pretrained weights.

    Args:
        pyramid: Its `resnet` is overwritten; the FPN is left alone. Offsets of deformable
            convolutions stay at zero where `source` has none.
        source: Path, `file:`, `https:` or `http:` URL of a state dict with the parameter names of
            torchvision, for a backbone of timm those of timm; the name of a weights enum such as
            `ResNet50_Weights.IMAGENET1K_V1`; `timm` for the weights that timm chooses for the
            backbone, or `timm/NAME.TAG`. Downloads are kept in the cache of torch or of the
            Hugging Face hub.

    Raises:
        ConfigError: File or name unknown, no download possible, or parameters that are missing,
            of another shape, or without a place in the configured backbone.
    """
    backbone = pyramid.resnet
    if isinstance(timm := backbone, TimmFeatures):
        state = timm.names_here(_without_prefix(_read(source, timm_name=timm.name)))
        backbone = timm.net
    else:
        state = backbone_part(_read(source))
    wanted = backbone.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith(_OPTIONAL)]
    # Stages and classifiers behind the last level are left out; nothing else is.
    parts = {key.partition(".")[0] for key in wanted}
    unused = [
        key
        for key in state
        if key not in wanted and key.partition(".")[0] in parts and not key.endswith(_COUNTER)
    ]
    fitting = {key: state[key] for key in wanted if key in state}
    other = [key for key, value in fitting.items() if value.shape != wanted[key].shape]
    for fault, keys in (
        (f"{source} lacks", missing),
        (f"the configured backbone has no place for what {source} holds,", unused),
        (f"the configured backbone differs in shape from {source} in", other),
    ):
        if keys:
            count = f"{len(keys)} parameters, first {keys[0]}"
            raise ConfigError(f"{fault} {count}; {_advice(keys)}")
    backbone.load_state_dict(fitting, strict=False)


def _advice(keys: list[str]) -> str:
    """Return the setting by which weights and backbone differ, as their parameters show."""
    if all(key.endswith(_STATISTICS) for key in keys):
        return (
            "batch norm has statistics and group norm has none: --set model.backbone_norm="
            "frozen_batch (or batch, group) as the weights were trained, or from scratch with "
            "--set backbone_weights=none"
        )
    if all(".conv2.offset." in key for key in keys):
        return "the weights are of deformable convolutions: --set model.dcn=true"
    return (
        "give weights of the configured backbone with the parameter names of torchvision (timm's "
        "for timm/NAME), or --set model.backbone=NAME"
    )


def backbone_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone of a state dict under our names; a bare backbone has no prefix."""
    return {
        key.removeprefix("features.").replace(  # the name of MobileNet's backbone
            ".conv2_offset.", ".conv2.offset."
        ): value
        for key, value in _without_prefix(state).items()
    }


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "backbone." if any(key.startswith("backbone.") for key in state) else ""
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, with or without a `state_dict` around them.

    Raises:
        ConfigError: No state dict, or one that only code could read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{path} can't be read as plain tensors ({str(error).splitlines()[0]}); if you trust "
            "where it is from, keep its tensors only: state = torch.load(FILE, weights_only=False)"
            '["state_dict"]; torch.save(state, NEW_FILE)'
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {
        name.removeprefix("module."): value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ConfigError(f"{path} holds no state dict; give a file that torch.save wrote from one")
    return tensors


def _read(source: str, *, timm_name: str = "") -> dict[str, Tensor]:
    if source == "timm" or source.startswith(TIMM):
        if not timm_name:
            raise ConfigError(
                f"--backbone-weights {source}: the configured backbone is not of timm; "
                f"--set model.backbone={TIMM}NAME"
            )
        return pretrained_timm(source.partition("/")[2] or timm_name)
    scheme = urlparse(source).scheme
    if scheme in ("http", "https"):
        return read_state_dict(download(source))
    if scheme == "s3":
        raise ConfigError(
            f"{source} is read by no code here; run `aws s3 cp {source} {Path(source).name}` and "
            f"pass --backbone-weights {Path(source).name}"
        )
    path = Path(url2pathname(urlparse(source).path) if scheme == "file" else source)
    if path.is_file():
        return read_state_dict(path)
    try:
        url = torchvision.models.get_weight(source).url
    except ValueError as error:
        raise ConfigError(
            f"--backbone-weights {source}: neither a file, a URL nor a torchvision weights name; "
            "write for example ResNet50_Weights.IMAGENET1K_V1, or timm for a backbone of timm"
        ) from error
    return read_state_dict(download(url))


def download(url: str) -> Path:
    """Download a file into torch's cache, unless it is there; safe with several processes."""
    name = Path(urlparse(url).path).name
    checked = _HASHED_NAME.search(name)
    # Two places may each have a model.mar.
    kept = name if checked else f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / kept
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), checked.group()[1:-1] if checked else None, progress=False
        )
    except (URLError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"can't download {url} ({error}); run `curl -L -o {name} {url}` on a machine with "
            f"network and pass --backbone-weights {name}, or train from scratch with "
            "--set backbone_weights=none --set model.backbone_norm=group"
        ) from error
    return path
