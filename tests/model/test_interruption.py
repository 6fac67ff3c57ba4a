import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from polarmask.cli import main
from polarmask.errors import TrainingStopped
from polarmask.system.signals import no_interrupts_in_children, stop_request
from polarmask.training.checkpoint import load_checkpoint
from started import started

CPU = torch.device("cpu")
SETTINGS = ["model.channels=32", "model.tower_depth=1", "optim.batch_size=4", "optim.epochs=500"]


def start(data, labels, out, *launcher, flags=()):
    command = [
        *(sys.executable, "-m", *launcher, "polarmask", "train", "--preset=tiny", "--device=cpu"),
        *(f"--set={setting}" for setting in SETTINGS),
        *("--data", str(data), "--labels", str(labels), "--out", str(out), *flags),
    ]
    # A session of its own: signals can go to the whole group, as schedulers send them.
    return started(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def steps_of(out):
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line)["step"] for line in lines]


def wait_for_steps(child, out, number):
    end = time.monotonic() + 60
    while len(steps_of(out)) < number:
        assert child.poll() is None, child.stderr.read()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        pytest.param(signal.SIGTERM, ["--loader-workers=1"], id="SIGTERM-to-loaders-too"),
        pytest.param(signal.SIGHUP, [], id="SIGHUP"),
        pytest.param(signal.SIGINT, ["--loader-workers=1"], id="SIGINT-to-loaders-too"),
    ],
)
def test_a_signal_saves_the_step_and_ends_with_its_code(
    drawn_data, drawn_labels, tmp_path, number, flags
):
    with start(drawn_data, drawn_labels, tmp_path, flags=flags) as child:
        wait_for_steps(child, tmp_path, 3)
        os.killpg(child.pid, number)
        _, error = child.communicate(timeout=30)
    assert child.returncode == 128 + number
    step = load_checkpoint(tmp_path / "checkpoint.pt").step
    assert steps_of(tmp_path) == list(range(1, step + 1))
    message = f"stopped by {number.name}: step {step} of 1000 is saved"
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_torchrun_ends_with_all_processes_at_one_saved_step(drawn_data, drawn_labels, tmp_path):
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    with start(drawn_data, drawn_labels, tmp_path, *launcher) as child:
        wait_for_steps(child, tmp_path, 3)
        child.terminate()
        child.communicate(timeout=30)
    step = load_checkpoint(tmp_path / "checkpoint.pt").step
    assert steps_of(tmp_path) == list(range(1, step + 1))


def test_a_signal_waits_for_the_step_to_end():
    with stop_request() as stop:
        assert not stop.is_requested(CPU)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_requested(CPU)
        assert "stopped by SIGTERM: step 3 is saved" in str(stop.stopped("step 3 is saved"))


def test_a_signal_that_comes_while_processes_agree_waits_for_the_next_step(monkeypatch):
    def signalled_late(value, device):
        os.kill(os.getpid(), signal.SIGTERM)
        return value

    with stop_request() as stop:
        monkeypatch.setattr("polarmask.system.signals.all_max", signalled_late)
        assert not stop.is_requested(CPU)
        monkeypatch.undo()
        assert stop.is_requested(CPU)


def test_work_that_can_be_done_anew_is_left_at_once():
    with stop_request() as stop, pytest.raises(TrainingStopped, match="SIGHUP: all is saved"):
        interrupt_inside(stop)
    with stop_request() as stop, pytest.raises(TrainingStopped, match="SIGTERM"):
        interrupt_before(stop)


def interrupt_inside(stop):
    with stop.at_once("all is saved"):
        os.kill(os.getpid(), signal.SIGHUP)
        raise AssertionError("the signal was held back")


def interrupt_before(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    with stop.at_once("all is saved"):
        raise AssertionError("the signal was forgotten")


def test_an_ignored_signal_stays_ignored():
    """As under nohup: a terminal that is closed later stops nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_requested(CPU)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_reaches_no_process_that_started_in_the_block():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    with no_interrupts_in_children():
        inside = subprocess.run([sys.executable, "-c", code], check=False)
    outside = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (inside.returncode, outside.returncode) == (0, -signal.SIGINT)


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_request():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_exit_code_says_that_a_signal_stopped_it(monkeypatch, capsys):
    def stopped(options):
        raise TrainingStopped("stopped by SIGTERM", signal.SIGTERM)

    monkeypatch.setattr("polarmask.commands.train_command.run", stopped)
    assert main(["train", "--data", "d", "--out", "o"]) == 143
    assert capsys.readouterr().err == "polarmask train: stopped by SIGTERM\n"


def test_workers_of_a_pool_end_with_a_killed_parent():
    lines = (
        "import os, signal",
        "from concurrent.futures import ProcessPoolExecutor",
        "from multiprocessing import get_context",
        "from polarmask.system.signals import end_with_parent",
        "pool = ProcessPoolExecutor(1, get_context('spawn'), end_with_parent)",
        "print(pool.submit(os.getpid).result(), flush=True)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    # It also waits for the worker, which holds the other end of the pipe.
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
