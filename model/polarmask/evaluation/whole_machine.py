"""Evaluate with all GPUs of this machine, or with processes that share its cores."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch

from polarmask.data.coco import CocoData
from polarmask.evaluation.evaluate import Evaluation, evaluate_split
from polarmask.evaluation.predict_split import predict_split
from polarmask.inference.instances import Instances
from polarmask.inference.predictor import Predictor
from polarmask.system.device import find_device
from polarmask.system.signals import end_with_parent, no_interrupts_in_children

_IMAGES_PER_PROCESS = 200
"""A process takes seconds to start, in which this one would finish many images."""
_MOST_CPU_PROCESSES = 4
"""Each holds the whole network."""


def evaluate_on_machine(
    predictor: Predictor,
    open_model: Callable[..., Predictor],
    data: CocoData,
    *,
    processes: int = 0,
) -> tuple[Evaluation, dict[int, Instances]]:
    """Do as `evaluate_split`, with several processes; the result does not depend on them.

    Args:
        predictor: The model on this machine's first device.
        open_model: Returns the model on the `device` given; can be sent to other processes.
        data: The split.
        processes: 0 takes as many as pay.

    Raises:
        DataError: As `evaluate_split`.
    """
    processes = processes or choose_processes(len(data.images))
    if processes == 1:
        return evaluate_split(predictor, data)

    def predict(_: Predictor, matched: CocoData) -> dict[int, Instances]:
        return _predict_together(open_model, processes, matched)

    return evaluate_split(predictor, data, predict=predict)


def choose_processes(images: int) -> int:
    """Return how many processes predict so many images fastest here: on GPUs one for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = torch.cuda.device_count() or min(cores or 1, _MOST_CPU_PROCESSES)
    return max(1, min(most, images // _IMAGES_PER_PROCESS))


def _predict_together(
    open_model: Callable[..., Predictor], processes: int, data: CocoData
) -> dict[int, Instances]:
    parts = [replace(data, images=data.images[first::processes]) for first in range(processes)]
    context = get_context("spawn")  # fork would copy torch's thread pools, which then hang
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, context, _start_worker, (threads,)) as pool:
        with no_interrupts_in_children():
            found = pool.map(partial(_predict_part, open_model), range(processes), parts)
        return {image_id: one for part in found for image_id, one in part.items()}


def _start_worker(threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)


def _predict_part(
    open_model: Callable[..., Predictor], number: int, data: CocoData
) -> dict[int, Instances]:
    index = number % (torch.cuda.device_count() or 1)
    found = predict_split(open_model(device=find_device(index=index)), data)
    for instances in found.values():
        instances.rle()  # cached here, so that the first process need not make them all
    return found
