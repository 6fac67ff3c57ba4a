"""How commands end: errors, Ctrl-C, output that nobody reads, missing extras."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from polarmask.cli import main
from polarmask.system.command_line import run_command
from polarmask_pipelines.__main__ import main as pipelines
from polarmask_serving.__main__ import main as serving
from started import started

ROOT = Path(__file__).parents[2]


def raising(error):
    def run(*_):
        raise error

    return run


@pytest.mark.parametrize(
    ("command", "place", "arguments"),
    [
        (main, "polarmask.commands.evaluate_command.run", ["evaluate", "--model=m", "--data=d"]),
        (main, "polarmask.commands.presets_command.run", ["presets"]),
        (serving, "polarmask_serving.__main__._serve", ["serve", "m"]),
        (pipelines, "polarmask_pipelines.commands.local.compile_package", ["compile", "--out=x"]),
    ],
)
def test_ctrl_c_is_one_line_and_exit_code_130(command, place, arguments, monkeypatch, capsys):
    monkeypatch.setattr(place, raising(KeyboardInterrupt))
    assert command(arguments) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_may_say_what_is_kept(capsys):
    assert run_command(raising(KeyboardInterrupt("3 of 9 are in x")), prefix="p") == 130
    assert capsys.readouterr().err == "interrupted: 3 of 9 are in x\n"


def with_closed_output(monkeypatch, arguments):
    """Run a command whose output is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        return main(arguments)


def test_output_that_nobody_reads_ends_a_command_quietly(monkeypatch, capsys):
    assert with_closed_output(monkeypatch, ["presets"]) == 141
    assert capsys.readouterr().err == ""


def test_help_that_nobody_reads_is_no_error(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        with_closed_output(monkeypatch, ["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().err == ""


def test_another_pipe_that_broke_is_an_error(capsys):
    """As one to a worker process or a server."""
    failing = raising(BrokenPipeError("to a worker"))
    assert run_command(failing, prefix="p", errors=(OSError,)) == 2
    assert "p: to a worker" in capsys.readouterr().err
    with pytest.raises(BrokenPipeError):
        run_command(failing, prefix="p")


def test_a_full_disk_is_an_error(monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["presets"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_process_ends_with_the_test_that_started_it():
    sleeper = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    parent = [sys.executable, "-c", f"import subprocess; subprocess.run({sleeper})"]
    processes = []

    def fail_meanwhile():
        with started(parent, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            processes.extend([*psutil.Process(process.pid).children(), process])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_meanwhile()
    child, process = processes
    assert process.returncode == -signal.SIGKILL
    assert not psutil.wait_procs([child], timeout=10)[1]


def test_children_of_tests_have_the_default_signals():
    """Whatever this process inherited, as of nohup."""
    code = "import signal as s; print(s.getsignal(s.SIGHUP), s.getsignal(s.SIGINT).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{signal.SIG_DFL} default_int_handler\n"


@pytest.mark.parametrize(
    ("package", "arguments", "brought_by"),
    [
        ("polarmask", [], "."),
        ("polarmask_serving", ["measure", "--model=m", "--out=x.json"], "."),
        ("polarmask_pipelines", [], "'.[pipelines]'"),
    ],
)
def test_without_any_extra_a_command_names_the_one_to_install(package, arguments, brought_by):
    areas = [str(ROOT / area) for area in ("model", "serving", "components", "pipelines")]
    # -S: nothing of site-packages.
    start = f"import runpy, sys; sys.path[:0] = {areas}; sys.argv[1:] = {arguments}; "
    code = start + f"runpy.run_module('{package}', None, '__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"is not installed; `pip install {brought_by}` in" in line


def test_a_package_that_no_extra_brings_is_a_bug_of_ours():
    with pytest.raises(ModuleNotFoundError):
        run_command(raising(ModuleNotFoundError("no x", name="x")), prefix="p")
    assert run_command(raising(ModuleNotFoundError("", name="numba.core")), prefix="p") == 2
