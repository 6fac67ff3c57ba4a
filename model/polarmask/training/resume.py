"""The checkpoint to resume from: the newest one on any machine of the run.

Machines need not share a disk. The first process writes the run folder, and after a restart it may
run on another machine.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from polarmask.errors import CheckpointError
from polarmask.system.distributed import all_gather, broadcast, rank
from polarmask.system.files import atomic_path
from polarmask.training.checkpoint import TrainingState, load_checkpoint
from polarmask.training.run_folder import CHECKPOINT, files_to_resume

logger = logging.getLogger(__name__)


def newest_state(folder: Path, require: Callable[[TrainingState], None]) -> TrainingState | None:
    """Return the newest state in the run folder of any process, or None.

    All processes call this together. Files of the newest state are copied to folders without it.

    Args:
        folder: This process's run folder; processes of one machine share one.
        require: Raises CheckpointError for a state that belongs to another run.

    Raises:
        CheckpointError: The checkpoint of any process can't be used.
    """
    state, problem = _own_state(folder / CHECKPOINT, require)
    problems = [each for each in all_gather(problem) if each is not None]
    if problems:
        raise problems[0]
    own_step = -1 if state is None else state.step
    steps = all_gather(own_step)
    newest = max(steps)
    if min(steps) == newest:
        return state
    source = steps.index(newest)
    files = broadcast(_read(folder) if rank() == source else None, source)
    if own_step == newest:
        return state
    logger.info("step %d is on another machine; its files were copied from there", newest)
    for name, content in reversed(files.items()):  # the checkpoint last: it vouches for the others
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    return load_checkpoint(folder / CHECKPOINT)


def _own_state(
    path: Path, require: Callable[[TrainingState], None]
) -> tuple[TrainingState | None, CheckpointError | None]:
    """Return the state or the error: if one process raised here, the others would wait forever."""
    if not path.is_file():
        return None, None
    try:
        state = load_checkpoint(path)
        require(state)
    except CheckpointError as error:
        return None, error
    return state, None


def _read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_to_resume(folder)}
