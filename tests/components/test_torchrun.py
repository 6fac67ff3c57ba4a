import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from polarmask_components.errors import LaunchError
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.training.run_lock import run_lock
from polarmask_components.training.torchrun import (
    choose_processes,
    keep_model,
    run_to_end,
    training_command,
)
from started import started


def python(code):
    return [sys.executable, "-c", code]


def test_words_of_the_child_pass_through(capfd):
    run_to_end(python("import sys; print('out'); print('err', file=sys.stderr)"))
    assert sorted(capfd.readouterr().out.split()) == ["err", "out"]


def test_failure_names_the_exit_code_and_the_last_words():
    with pytest.raises(LaunchError, match=r"exit code 3(.|\n)*the reason"):
        run_to_end(python("print('the reason'); raise SystemExit(3)"))


def test_child_that_was_killed_is_named_so():
    with pytest.raises(LaunchError, match="ended by SIGKILL"):
        run_to_end(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))


def test_only_the_last_words_travel_with_the_failure():
    with pytest.raises(LaunchError) as caught:
        run_to_end(python("print(*range(1000), sep='\\n'); raise SystemExit(1)"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 31
    assert lines[-1] == "999"


_LAUNCHER = """
import sys
from polarmask_components.errors import LaunchError
from polarmask_components.training.run_lock import run_lock
from polarmask_components.training.torchrun import run_to_end
child = "import signal, time; print('up', flush=True); signal.pause()"
try:
    run_to_end([sys.executable, "-c", child])
except LaunchError as error:
    print("launch error", error)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(
    ("number", "expected_text"),
    [
        (signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, "ended by SIGTERM"),
        (signal.SIGINT, "interrupted"),
    ],
)
def test_signal_to_the_launcher_ends_the_training(number, expected_text):
    with started(python(_LAUNCHER), stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "up\n"
        children = psutil.Process(launcher.pid).children(recursive=True)
        assert children
        launcher.send_signal(number)
        out, _ = launcher.communicate(timeout=30)
    assert expected_text in out
    assert not any(child.is_running() for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel signals children on Linux only")
def test_training_does_not_outlive_a_launcher_that_was_killed():
    with started(python(_LAUNCHER), stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "up\n"
        children = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.communicate(timeout=30)
    assert children
    assert not psutil.wait_procs(children, timeout=10)[1]


_RUN = """
import subprocess, sys
from pathlib import Path
from polarmask_components.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    subprocess.run([sys.executable, "-c", sys.argv[2]])
"""


def test_training_does_not_outlive_a_run_that_was_killed(tmp_path):
    command = [*python(_RUN), str(tmp_path / ".lock"), _LAUNCHER]
    with started(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "up\n"
        children = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        assert len(children) == 2  # launcher and training
        assert not psutil.wait_procs(children, timeout=10)[1]
        assert "ended by SIGTERM" in run.communicate(timeout=10)[0]


def test_one_folder_holds_one_run_at_a_time(tmp_path):
    file = tmp_path / ".lock"
    with run_lock(file), pytest.raises(LaunchError, match="another run"), run_lock(file):
        pass
    with run_lock(file):
        pass


def test_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_to_end(python("import os, signal; os.kill(os.getppid(), signal.SIGHUP)"))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_command_carries_settings_and_provenance_each_as_a_flag():
    command = training_command(
        data=Path("a folder/data"),
        labels=Path("labels"),
        out=Path("out"),
        flags=TrainingRequest(preset="tiny", overrides="optim.lr=0.1  seed=2").flags(
            {"data_commit": "c0ffee"}
        ),
        processes=2,
    )
    assert "--nproc-per-node=2" in command
    assert command[command.index("polarmask") :] == [
        "polarmask",
        "train",
        *("--data", "a folder/data"),
        *("--labels", "labels"),
        *("--out", "out"),
        *("--preset", "tiny"),
        *("--set", "optim.lr=0.1"),
        *("--set", "seed=2"),
        *("--provenance", "data_commit=c0ffee"),
    ]


def test_processes_fit_machine_and_batch(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert [choose_processes(batch) for batch in (8, 6, 7, 1)] == [4, 3, 1, 1]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert choose_processes(16) == 8


def test_kept_model_leaves_the_run_folder_whole(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.json").write_text("{}")
    (tmp_path / "run" / "checkpoint.pt").touch()
    (tmp_path / "run" / "metrics.jsonl").touch()
    keep_model(tmp_path / "run", tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.json"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
