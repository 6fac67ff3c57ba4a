"""Processes that share no disk, as on a cluster: the newest checkpoint of any is all's."""

import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from polarmask.config.settings import to_dict
from polarmask.system.files import atomic_path
from polarmask.training.checkpoint import load_checkpoint, save_checkpoint
from polarmask.training.run_folder import files_to_resume, take_snapshot

# Each process has a run folder of its own.
_TRAIN = """
import json, sys
from pathlib import Path
from polarmask.config.settings import from_dict
from polarmask.system.distributed import process_group, rank
from polarmask.errors import CheckpointError
from polarmask.training.train import TrainOptions, train

data, labels, out, config, stop_after = sys.argv[1:]
with process_group("cpu"):
    folder = Path(out) / str(rank())
    options = TrainOptions(data=Path(data), labels=Path(labels), out=folder,
        stop_after=int(stop_after) or None)
    try:
        train(from_dict(json.loads(config)), options)
    except CheckpointError as error:
        Path(out, f"{rank()}.txt").write_text(str(error))
"""


@pytest.fixture(scope="module")
def config(small_config):
    optim = replace(small_config.optim, epochs=6)
    return replace(small_config, optim=optim, validate_epochs=2)


@pytest.fixture
def train_on_two(config, drawn_data, drawn_labels, tmp_path):
    """Train with two processes and a folder for each; errors are in files of the ranks."""
    script = tmp_path / "train.py"
    script.write_text(_TRAIN)

    def train(out, stop_after=0):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(script), str(drawn_data), str(drawn_labels), str(out)),
            *(json.dumps(to_dict(config)), str(stop_after)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]

    return train


@pytest.mark.slow
def test_all_go_on_from_the_newest_checkpoint_of_any(train_on_two, tmp_path):
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    train_on_two(straight)
    train_on_two(parts, stop_after=7)
    (parts / "0").rename(parts / "1")  # the machine of the first process is another one now
    older = replace(load_checkpoint(parts / "1" / "checkpoint.pt"), step=3)
    save_checkpoint(parts / "0" / "checkpoint.pt", older)
    train_on_two(parts)
    for name in ("metrics.jsonl", "validation.jsonl"):
        lines = [(out / "0" / name).read_text().splitlines() for out in (straight, parts)]
        kept = [[{**json.loads(line), "seconds": 0} for line in run] for run in lines]
        assert kept[0] == kept[1]
    assert len((parts / "0" / "metrics.jsonl").read_text().splitlines()) == 12
    for name in ("model/model.safetensors", "best/model.safetensors"):
        assert (straight / "0" / name).read_bytes() == (parts / "0" / name).read_bytes()


@pytest.mark.slow
def test_a_damaged_checkpoint_of_one_stops_all(train_on_two, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "checkpoint.pt").write_bytes(b"damaged")
    train_on_two(tmp_path)
    for rank in (0, 1):
        error = (tmp_path / f"{rank}.txt").read_text()
        assert error.startswith(f"{tmp_path}/1/checkpoint.pt can't be read")


def write_run(folder, number):
    for name in ("metrics.jsonl", "validation.jsonl"):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(f"{number}")
    with atomic_path(folder / "best") as temporary:
        temporary.mkdir()
        for name in ("model.json", "model.safetensors"):
            (temporary / name).write_text(f"{number}")
    with atomic_path(folder / "checkpoint.pt") as temporary:
        temporary.write_text(f"{number}")


def test_a_snapshot_of_a_run_that_writes_is_of_one_time_or_newer(tmp_path):
    run = tmp_path / "run"
    write_run(run, 0)
    done = threading.Event()

    def write():
        for number in range(1, 1000):
            if done.is_set():
                break
            write_run(run, number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(40):
            copy = tmp_path / f"copy{number}"
            copy.mkdir()
            assert take_snapshot(run, copy)
            values = {path.name: int(path.read_text()) for path in files_to_resume(copy)}
            assert len(values) == 5
            assert values["model.json"] == values["model.safetensors"]
            assert min(values.values()) == values["checkpoint.pt"]
    finally:
        done.set()
        writer.join()


def test_a_snapshot_of_a_run_before_its_first_checkpoint_is_none(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "copy").mkdir()
    assert not take_snapshot(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run" / "checkpoint.pt").touch()
    assert take_snapshot(tmp_path / "run", tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["checkpoint.pt"]
