"""Start a training from the weights of another model: fine-tuning, or training for longer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polarmask.config.settings import RunConfig
from polarmask.data.coco import Category
from polarmask.errors import ConfigError

_CLASS_OUTPUT = "head.class_logit."
"""Its rows belong to categories; all other tensors do not depend on them."""
_LEAST_SHARE = 0.5
"""Of the parameters: with less in common it is another network."""


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """The weights of a model."""

    source: str
    """Where they come from, for messages."""
    config: RunConfig
    tensors: Mapping[str, Tensor]
    categories: tuple[Category, ...]
    """In the order of the network's outputs."""


def start_from(detector: nn.Module, initial: InitialWeights, categories: Sequence[Category]) -> str:
    """Take every tensor that fits, and the class outputs of categories that have the same name.

    Returns:
        One line that says what was taken and what is new.

    Raises:
        ConfigError: Less than half of the parameters fit.
    """
    row_of = {category.name: row for row, category in enumerate(initial.categories)}
    known = [(row, row_of[c.name]) for row, c in enumerate(categories) if c.name in row_of]
    taken, new = 0, []
    with torch.no_grad():
        for name, own in detector.state_dict().items():
            given = initial.tensors.get(name)
            if given is None or given.shape[1:] != own.shape[1:]:
                new.append(name)
            elif name.startswith(_CLASS_OUTPUT):
                for row, source_row in known:
                    own[row] = given[source_row]
            elif given.shape == own.shape:
                own.copy_(given)
                taken += own.numel()
            else:
                new.append(name)
    total = sum(own.numel() for own in detector.state_dict().values())
    if taken < _LEAST_SHARE * total:
        raise ConfigError(
            f"{initial.source}: only {taken / total:.0%} of the parameters fit this network; leave "
            "out --preset to take the model's own settings"
        )
    fresh = [category.name for category in categories if category.name not in row_of]
    return (
        f"start from {initial.source}: {taken / total:.0%} of the parameters; new: "
        f"{_listed(new, 'tensors')}, {_listed(fresh, 'categories')}"
    )


def _listed(names: Sequence[str], what: str) -> str:
    if not names:
        return f"no {what}"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more})"
