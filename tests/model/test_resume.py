"""A run in two parts is the run in one, to the last bit."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from polarmask.config.settings import to_dict
from polarmask.training.checkpoint import load_checkpoint
from polarmask.training.train import TrainOptions, train


@pytest.fixture(scope="module")
def twenty_steps(small_config):
    optim = replace(small_config.optim, epochs=10)
    return replace(small_config, optim=optim, validate_epochs=4)


@pytest.fixture(scope="module")
def straight(twenty_steps, drawn_data, drawn_labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    train(twenty_steps, TrainOptions(data=drawn_data, labels=drawn_labels, out=out))
    return out


def assert_equal_runs(found, expected):
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (found, expected)]
    steps = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in run]
        for run in lines
    ]
    assert len(steps[1]) == 20
    assert steps[0] == steps[1]
    states = [load_checkpoint(run / "checkpoint.pt") for run in (found, expected)]
    for part in ("detector", "average"):
        for name, value in getattr(states[1], part).items():
            assert torch.equal(getattr(states[0], part)[name], value), (part, name)
    moments = [state.optimizer["state"] for state in states]
    for number, values in moments[1].items():
        for name, value in values.items():
            assert torch.equal(moments[0][number][name], value), (number, name)
    measured = [(run / "validation.jsonl").read_text() for run in (found, expected)]
    assert measured[0] == measured[1]
    assert measured[1].count("mask_ap75") == 3
    model = "model/model.safetensors"
    assert (found / model).read_bytes() == (expected / model).read_bytes()


def test_ten_steps_and_ten_more_with_other_loaders_are_twenty(
    straight, twenty_steps, drawn_data, drawn_labels, tmp_path
):
    options = TrainOptions(data=drawn_data, labels=drawn_labels, out=tmp_path)
    train(twenty_steps, replace(options, stop_after=10))
    assert not (tmp_path / "model").exists()
    train(twenty_steps, replace(options, loader_workers=2))
    assert_equal_runs(tmp_path, straight)


_ON_TWO_PROCESSES = """
import json, sys
from dataclasses import replace
from pathlib import Path
from polarmask.config.settings import from_dict
from polarmask.system.distributed import process_group
from polarmask.training.train import TrainOptions, train

data, labels, out, config = sys.argv[1:]
config = from_dict(json.loads(config))
with process_group("cpu"):
    options = TrainOptions(data=Path(data), labels=Path(labels), out=Path(out) / "straight")
    train(config, options)
    options = replace(options, out=Path(out) / "parts")
    train(config, replace(options, stop_after=10))
    train(config, replace(options, loader_workers=1))
"""


@pytest.mark.slow
def test_on_two_processes_too(twenty_steps, drawn_data, drawn_labels, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(_ON_TWO_PROCESSES)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(script), str(drawn_data), str(drawn_labels), str(tmp_path)),
        json.dumps(to_dict(twenty_steps)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(tmp_path / "parts", tmp_path / "straight")
