"""A Docker engine of the tests' own: started if none answers, stopped by its process id."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

BASE = "polarmask-test-base:bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"


class Docker:
    """The command line of one engine."""

    def __init__(self, program, host=None):
        self.environment = {**os.environ, "DOCKER": program, "DOCKER_BUILDKIT": "1"}
        if host is not None:
            self.environment["DOCKER_HOST"] = host
        self._program = program

    def __call__(self, *arguments, check=True, time_out=600):
        """Run one command; return what it printed, errors behind it."""
        done = self.run(*arguments, time_out=time_out)
        assert not check or done.returncode == 0, f"docker {arguments}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def run(self, *arguments, time_out=600):
        return subprocess.run(
            [self._program, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=time_out,
        )

    def answers(self):
        return self.run("info").returncode == 0


def find_program():
    """Return a docker that can build with BuildKit: the newest may lack its plugin."""
    folders = os.environ["PATH"].split(os.pathsep)
    programs = [shutil.which("docker", path=folder) for folder in folders]
    for program in filter(None, [os.environ.get("DOCKER"), *programs]):
        asked = subprocess.run(
            [program, "build", "--help"],
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            capture_output=True,
            text=True,
        )
        if asked.returncode == 0 and "--secret" in asked.stdout:
            return program
    raise RuntimeError("no docker on PATH can build with secrets; install Docker 20.10 or newer")


@contextlib.contextmanager
def engine(folder):
    """Yield an engine that answers: the one that runs, or one of our own in this folder."""
    program = find_program()
    running = Docker(program)
    if running.answers():
        yield running
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise RuntimeError("no Docker engine answers, and none can be started: start one")
    host = f"unix://{folder / 'docker.sock'}"
    own = Docker(program, host)
    log = folder / "dockerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                # no network of its own: what needs one borrows the machine's
                *("dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false"),
                *("--oom-score-adjust", "0", f"--host={host}", f"--pidfile={folder / 'pid'}"),
                *(f"--data-root={folder / 'data'}", f"--exec-root={folder / 'exec'}"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while not own.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield own
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        for left in mounts_below(folder):
            subprocess.run(["umount", "--lazy", left], check=True)
        shutil.rmtree(folder)


def mounts_below(folder):
    """Return what an engine that has ended leaves mounted, the innermost first."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((each for each in places if each.startswith(f"{folder}/")), reverse=True)


def make_base(docker, folder):
    """Make a Debian with Python where no registry can be reached; return the image's name."""
    if docker.run("image", "inspect", BASE).returncode == 0:
        return BASE
    if shutil.which("mmdebstrap") is None:
        raise RuntimeError("mmdebstrap is not installed: it makes the base image")
    tar = Path(folder) / "base.tar"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", tar],
        check=True,
    )
    docker("import", str(tar), BASE)
    tar.unlink()
    return BASE
