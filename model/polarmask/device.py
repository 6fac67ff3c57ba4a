"""Where to compute."""

import torch

from polarmask.errors import ConfigError


def find_device(kind: str | None = None, *, index: int = 0) -> torch.device:
    """Return a device that is there.

    Args:
        kind: "cpu" or "cuda"; None takes CUDA where there is one.
        index: Of the GPU, from 0.

    Raises:
        ConfigError: CUDA is asked for and torch finds no such GPU.
    """
    found = torch.cuda.device_count()
    if kind is None:
        kind = "cuda" if found else "cpu"
    if kind != "cuda":
        return torch.device(kind)
    if index >= found:
        raise ConfigError(
            f"device cuda:{index} is not there, torch {torch.__version__} finds {found} GPUs; "
            "take --device cpu or fewer processes, or see whether `nvidia-smi` lists the GPU and "
            "torch was built for it"
        )
    return torch.device("cuda", index)
