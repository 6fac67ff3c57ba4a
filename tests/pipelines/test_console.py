import io
import sys

import pytest

from polarmask_pipelines.console import Console, console, error_in
from polarmask_pipelines.local_runner import TaskResult


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal():
    return Terminal()


def show_training(screen):
    log = io.StringIO()
    shown = Console(log, screen)
    shown.task_begins("train")
    shown.receive("12:00:00 - INFO - Executing task 'train'")
    shown.receive('        "inputs": {')
    shown.receive("    [KFP Executor 2026-01-01 INFO]: Looking for component")
    shown.receive("    step=5/20 loss=1.83 class=0.4 img_s=9.1 eta=30s")
    shown.task_ends(TaskResult("train", "succeeded", 12.34, {}))
    return log.getvalue()


def test_terminal_shows_the_progress_of_training_as_a_bar(terminal):
    show_training(terminal)
    assert (
        "train              [#####...............] 5/20 loss=1.83 img_s=9.1 eta=30s"
        in terminal.getvalue()
    )
    assert "KFP" not in terminal.getvalue()
    assert "inputs" not in terminal.getvalue()


def test_elsewhere_a_step_is_one_line():
    screen = io.StringIO()
    show_training(screen)
    assert screen.getvalue() == "train                12.3 s\n"


def test_secrets_are_in_neither_log_nor_error():
    log = io.StringIO()
    shown = Console(log, io.StringIO(), webhook="https://chat.example/T0/s3cr3t")
    shown.task_begins("ingest-coco")
    shown.receive("    inputs: https://chat.example/T0/s3cr3t, https://t0k@git.example/x.git")
    shown.task_ends(TaskResult("ingest-coco", "failed", 1.0, {}))
    assert shown.error == "inputs: https://chat.example/***, https://***@git.example/x.git"
    assert shown.error in log.getvalue()


def test_elsewhere_the_progress_of_training_is_printed_every_20_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr("polarmask_pipelines.console.time.monotonic", lambda: now)
    screen = io.StringIO()
    shown = Console(io.StringIO(), screen)
    shown.task_begins("train")
    for step in range(1, 51):
        now += 1
        shown.receive(f"    step={step}/50 loss=1.83 class=0.4 img_s=9.1 eta=30s")
        shown.receive("    other output")
    assert screen.getvalue().splitlines() == [
        "train              step 20/50 loss=1.83 img_s=9.1 eta=30s",
        "train              step 40/50 loss=1.83 img_s=9.1 eta=30s",
    ]


def test_log_keeps_every_line():
    log = show_training(io.StringIO())
    assert log.count("\n") == 4
    assert "Executing task" in log


def test_live_line_never_exceeds_the_terminal(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = Console(io.StringIO(), terminal)
    shown.task_begins("train")
    shown.receive("    " + "x" * 200)
    assert max(len(line) for line in terminal.getvalue().split("\x1b[K")) < 40


def test_reused_step_is_marked():
    screen = io.StringIO()
    Console(io.StringIO(), screen).task_ends(TaskResult("train", "reused", 0.0, {}))
    assert screen.getvalue() == "train                 0.0 s  reused\n"


def test_other_output_goes_only_to_the_log(tmp_path, capsys):
    with console(tmp_path / "run" / "log") as shown:
        sys.stdout.write("noise\n")
        sys.stderr.write("a warning\n")
        shown.print_line("for the user")
    assert capsys.readouterr().out == "for the user\n"
    assert (tmp_path / "run" / "log").read_text() == "noise\na warning\n"


TRACE = """\
step=1/9 loss=2
Traceback (most recent call last):
  File "a.py", line 1, in f
    raise KeyError
KeyError

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in g
polarmask_components.errors.LaunchError: training ended: its last lines
out of memory"""


def test_error_is_the_last_exception_without_its_traceback():
    message = "LaunchError: training ended: its last lines\nout of memory"
    assert error_in(TRACE.splitlines()) == message


def test_without_exception_the_last_lines_are_the_error():
    assert error_in(["a", "b", "c", "d", "e", "Killed"]) == "b\nc\nd\ne\nKilled"


def test_first_failure_is_reported():
    shown = Console(io.StringIO(), io.StringIO())
    for name, output in (("train", "first"), ("notify", "second")):
        shown.task_begins(name)
        shown.receive("    " + output)
        shown.receive("12:00 - ERROR - Task finished with status FAILURE")
        shown.task_ends(TaskResult(name, "failed", 1.0, {}))
    assert shown.error == "first"
