"""Process groups and collectives; with one process they do nothing, so callers need no branch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from polarmask.system.device import find_device

Value = TypeVar("Value")


@contextmanager
def process_group(device: str | None = None) -> Iterator[torch.device]:
    """Join the group that torchrun describes in the environment, if it does; leave it at the end.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where there is one.

    Yields:
        The device of this process.

    Raises:
        ConfigError: CUDA is asked for and there is no GPU for this process.
    """
    own = find_device(device, index=int(os.environ.get("LOCAL_RANK", "0")))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if "WORLD_SIZE" not in os.environ:
        yield own
        return
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield own
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Return this process's rank, 0 without a group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank() -> int:
    """Return this process's place among those of its machine, 0 without a group."""
    return _of_torchrun("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Return the number of processes of this machine, 1 without a group."""
    return _of_torchrun("LOCAL_WORLD_SIZE", 1)


def _of_torchrun(name: str, alone: int) -> int:
    """Read what only torchrun sets; a launcher that sets less has one process per machine."""
    return int(os.environ.get(name, alone)) if distributed.is_initialized() else alone


def is_first() -> bool:
    """Return whether this process is the one that writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if distributed.is_initialized():
        distributed.barrier()


def all_sum(value: Tensor) -> Tensor:
    """Return the sum over processes, without gradient."""
    summed = value.detach().clone()
    if distributed.is_initialized():
        distributed.all_reduce(summed)
    return summed


def all_max(value: int, device: torch.device) -> int:
    """Return the largest value over processes."""
    if not distributed.is_initialized():
        return value
    largest = torch.tensor(value, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest)


def all_gather(value: Value) -> list[Value]:
    """Return the values of all processes, in order of rank, on every process."""
    if not distributed.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


def once_per_machine(make: Callable[[], Value]) -> Value:
    """Return what the first process of each machine makes; all processes call this together.

    The others get pickled copies.
    """
    own = make() if local_rank() == 0 else None
    made = all_gather(own)
    return own if own is not None else cast(Value, made[rank() - local_rank()])


def gather_to_first(value: Value) -> list[Value]:
    """Return the values of all processes on the first one, an empty list on the others."""
    if not distributed.is_initialized():
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_first() else None
    distributed.gather_object(value, gathered)
    return gathered or []


def broadcast(value: Value | None, source: int) -> Value:
    """Return the value of the process with rank `source` on every process.

    The other values are not read. Needs a group.
    """
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, source)
    received: Value = values[0]
    return received
