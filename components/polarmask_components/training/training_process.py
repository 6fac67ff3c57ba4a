"""What torchrun starts on a node of a training job: `polarmask train` from the newest checkpoint.

It takes a place in object storage and, after --, the arguments of `polarmask`.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from polarmask.cli import main as polarmask
from polarmask_components.errors import StorageError
from polarmask_components.training.job_storage import JobStorage
from polarmask_components.training.run_snapshots import restore_newest_snapshot
from polarmask_components.training.training_pod import REFUSED, refusal_file, run_folder


def main() -> int:
    """Run one process of a node.

    Returns:
        The exit code of `polarmask`, or 1 if the newest checkpoint can't be had.
    """
    parser = argparse.ArgumentParser(prog="training_process")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # One of a node fetches; the others meet it when they join the process group.
    if os.environ["LOCAL_RANK"] == "0":
        try:
            restore_newest_snapshot(
                run_folder(options.workspace), JobStorage(options.storage, options.job)
            )
        except StorageError as error:
            logging.getLogger(__name__).error("training process: %s", error)
            return 1
    code = polarmask(options.command)
    if code == REFUSED:
        refusal_file(options.workspace).touch()
    return code


if __name__ == "__main__":
    sys.exit(main())
