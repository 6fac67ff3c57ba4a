"""Training as a child process: torchrun starts the workers, their output passes through."""

import os
import signal
import subprocess
import sys
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Iterator, Sequence
from io import IncrementalNewlineDecoder
from pathlib import Path
from select import select
from types import FrameType

from polarmask.training.run_folder import CHECKPOINT
from polarmask_components.errors import LaunchError
from polarmask_components.signals import on_stop_signal
from polarmask_components.training.run_lock import die_with_parent, end_with_run

_TAIL_LINES = 30
_TORCHRUN_REPORTS = "torch/distributed/elastic/multiprocessing/api.py"
"""In the first line of torchrun's own report of a failure, which does not name the reason."""
_MOST_CPU_PROCESSES = 4
"""Each holds the whole network."""
_SECONDS_PER_READ = 0.5
_READ_BYTES = 1 << 16
_SECONDS_TO_END = 40
"""torchrun itself gives its workers 30 s before it kills them."""


def choose_processes(batch_size: int) -> int:
    """Return how many processes train best on this machine.

    One for each GPU; without one, a few of one thread each, which share cores better than threads
    of one process do. The batch divides evenly among them.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = torch.cuda.device_count() or min(cores or 1, _MOST_CPU_PROCESSES)
    return next(number for number in range(most, 0, -1) if batch_size % number == 0)


def train_here(
    *, data: Path, labels: Path, flags: Sequence[str], processes: int, model: Path, run: Path
) -> None:
    """Train on this machine.

    Args:
        data: COCO folder.
        labels: Label store.
        flags: See `TrainingRequest.flags`.
        processes: Number of training processes.
        model: Where the model folder goes.
        run: Where the run folder goes, without checkpoint.

    Raises:
        LaunchError: The training ended with an error.
    """
    run_to_end(
        training_command(data=data, labels=labels, out=run, flags=flags, processes=processes)
    )
    keep_model(run, model)


def training_command(
    *, data: Path, labels: Path, out: Path, flags: Sequence[str], processes: int
) -> list[str]:
    """Return the command line that trains on this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={processes}", "-m", "polarmask", "train"]
    return [*command, "--data", str(data), "--labels", str(labels), "--out", str(out), *flags]


def run_to_end(command: Sequence[str]) -> None:
    """Run a command, print what it prints, and pass SIGTERM and SIGHUP on to it.

    The command ends with this process and with the run, even if those are killed.

    Raises:
        LaunchError: It ended with an error or was stopped; the message has its last lines.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent,
    ) as child:

        def pass_on(number: int, frame: FrameType | None) -> None:
            child.terminate()

        with on_stop_signal(pass_on):
            end_with_run(child)
            try:
                is_trainings = True
                for line in _lines(child):
                    sys.stdout.write(line)
                    sys.stdout.flush()
                    is_trainings = is_trainings and _TORCHRUN_REPORTS not in line
                    if is_trainings:
                        tail.append(line)
                child.wait()
            finally:
                _end(child)
    if child.returncode:
        reason = f"ended with exit code {child.returncode}"
        if child.returncode < 0:
            reason = f"was ended by {signal.Signals(-child.returncode).name}"
        raise LaunchError(f"training {reason}. Its last lines:\n{''.join(tail)}")


def _lines(child: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield the lines that a child prints, as they come.

    Never waits long: a signal that comes just before a read is handled only after the read.
    """
    assert child.stdout is not None  # noqa: S101  # it is a pipe
    source = child.stdout.fileno()
    decoder = IncrementalNewlineDecoder(getincrementaldecoder("utf-8")("replace"), translate=True)
    held = ""
    while True:
        if not select([source], [], [], _SECONDS_PER_READ)[0]:
            continue
        read = os.read(source, _READ_BYTES)
        *lines, held = (held + decoder.decode(read, final=not read)).split("\n")
        yield from (f"{line}\n" for line in lines)
        if not read:
            break
    if held:
        yield held


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, as after Ctrl-C: SIGTERM, then SIGKILL."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()


def keep_model(run: Path, model: Path) -> None:
    """Move the finished model out of the run folder, as a whole; the checkpoint goes.

    The checkpoint is needed only until the model is finished, and is several times its size.
    """
    (run / "model").replace(model)
    (run / CHECKPOINT).unlink(missing_ok=True)
