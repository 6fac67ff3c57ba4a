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


class Processes:
    """One start of a container: its first process and all that descend from it.

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
        self._first = subprocess.Popen(
            command,
            env=environment | {name: value},
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
        """Wait for the first process, end what it left behind; return the exit code, as shells do.

        A process that a signal ended has 128 + the signal's number.
        """
        code = self._first.wait()
        self._end_all()
        self._reader.join()
        return 128 - code if code < 0 else code

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
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return sorted(found, key=lambda pid: (pid != self._first.pid, pid))

    def _end_all(self):
        """Kill until nobody is left: a process may fork while its siblings die."""
        with suppress(ProcessLookupError):
            if self.is_alive:
                os.kill(self._first.pid, signal.SIGKILL)
        while alive := [pid for pid in self.ids() if pid != self._first.pid]:
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
