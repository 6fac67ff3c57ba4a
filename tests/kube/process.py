"""Processes of one container: started together, signalled and ended together."""

import os
import signal
import subprocess
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

_MARK = "KUBE_TESTS_CONTAINER"


def is_alive(pid):
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _environment_at(path):
    """Return the entries of /proc/*/environ; it is empty for a moment after a program starts."""
    for _ in range(20):
        if data := path.read_bytes():
            return data.split(b"\0")
        path.with_name("exe").readlink()  # OSError: a zombie, or a thread of the kernel
        time.sleep(0.001)
    return []


class Processes:
    """One start of a container: its first process and all descendants.

    Descendants are found by a mark in their environment: torchrun puts its workers into
    sessions of their own, and what a dead parent leaves behind must end with its container,
    as in a process namespace.

    Args:
        command: Program and arguments.
        environment: The whole environment.
        folder: Working directory.
        write: Called with each line of output.
    """

    def __init__(self, command, environment, folder, write):
        self._mark = f"{_MARK}={uuid.uuid4()}"
        name, value = self._mark.split("=")
        self._environment = environment | {name: value}
        self._folder = folder
        self.ended = threading.Event()
        self._first = subprocess.Popen(
            command,
            env=self._environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._write = write
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._first.stdout:
            self._write(line.decode(errors="replace"))
        self._first.stdout.close()

    @property
    def is_alive(self):
        return self._first.poll() is None

    def wait(self):
        """Wait for the first process, kill its descendants; return the exit code, as shells do.

        A process that a signal ended has 128 + the signal's number.
        """
        code = self._first.wait()
        self._end_all()
        self._reader.join()
        self.ended.set()
        return 128 - code if code < 0 else code

    def execute(self, command, timeout):
        """Run a command like `kubectl exec`; return whether it succeeded."""
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
            return done.returncode == 0
        return False

    def signal(self, number):
        """Send a signal to the first process; SIGKILL reaches all."""
        if number == signal.SIGKILL:
            self._end_all()
        elif self.is_alive:
            self._first.send_signal(number)

    def ids(self):
        """Return the ids of all living processes, the first one's first."""
        mark = self._mark.encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in _environment_at(path):
                    found.append(int(path.parent.name))
        return sorted(found, key=lambda pid: (pid != self._first.pid, pid))

    def _end_all(self):
        """Kill until no process is left: one may fork while others die."""
        with suppress(ProcessLookupError):
            if self.is_alive:
                os.kill(self._first.pid, signal.SIGKILL)
        while alive := [pid for pid in self.ids() if pid != self._first.pid]:
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
