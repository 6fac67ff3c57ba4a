"""The life of one container: pull, configure, start, probe, restart, stop."""

import signal
import threading
import time
from pathlib import Path

from kube.clock import now
from kube.environment import ConfigError, environment_of, expand
from kube.probes import Prober, run_hook
from kube.process import Processes

_RETRY = 0.1  # seconds between checks for a missing image or Secret
_LONGEST_BACKOFF = 30.0


class Container:
    """One container of a pod; `run` returns when the container is not restarted any more.

    Args:
        pod: The `PodRunner` that it belongs to.
        spec: Its part of the pod's spec.
        restart: Always, OnFailure or Never.
        waits_for: Reason in its status before it is prepared.
    """

    def __init__(self, pod, spec, restart, waits_for="ContainerCreating"):
        self.pod = pod
        self.spec = spec
        self.exit_code = None  # of the last run
        self.started = False
        self.ready = False
        self.environment = {}
        self.ending = ""  # why it was stopped on purpose
        self._restart = restart
        self._restarts = 0
        self._state = {"waiting": {"reason": waits_for}}
        self._last_state = {}
        self._processes = None
        self._lock = threading.Lock()

    @property
    def name(self):
        return self.spec["name"]

    def status(self):
        """Return its entry in the pod's status."""
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": self.spec["image"],
            "restartCount": self._restarts,
            "started": self.started,
            "ready": self.ready,
            "state": self._state,
            "lastState": self._last_state,
        }

    def run(self):
        """Run the container until it is not restarted any more, or the pod stops."""
        backoff = 0.0
        while not self.pod.stopping.is_set():
            if not self._prepare():
                continue
            code = self._run_once()
            over = self._restart == "Never" or (self._restart == "OnFailure" and code == 0)
            if over or self.pod.stopping.is_set():
                self.exit_code = code
                return
            self._last_state = self._state
            self._wait_as("CrashLoopBackOff", f"back-off {backoff:g}s restarting {self.name}")
            self.pod.record("Warning", "BackOff", f"Back-off restarting container {self.name}")
            self.pod.stopping.wait(backoff)
            backoff = min(_LONGEST_BACKOFF, max(backoff * 2, self.pod.kubelet.backoff))
            self._restarts += 1

    def _prepare(self):
        """Prepare a start; return False, after a pause, if something is missing."""
        images = self.pod.kubelet.images
        if images is not None and self.spec["image"] not in images:
            message = f'Back-off pulling image "{self.spec["image"]}"'
            self.pod.record("Warning", "Failed", f"Failed to pull image {self.spec['image']}")
            return self._wait_as("ImagePullBackOff", message, pause=_RETRY)
        try:
            self.environment = environment_of(
                *(self.pod.kubelet.server, self.pod.current(), self.spec),
                volumes=self.pod.volumes(),
                home=self.pod.folder,
            )
        except ConfigError as error:
            return self._wait_as(error.reason, str(error), pause=_RETRY)
        return True

    def _wait_as(self, reason, message, pause=0.0):
        waiting = {"reason": reason, "message": message}
        if self._state != {"waiting": waiting}:
            self._state = {"waiting": waiting}
            self.started = self.ready = False
            self.pod.report()
        self.pod.stopping.wait(pause)
        return False

    def command(self, given):
        """Return a command line with its variables and mount paths replaced."""
        mapping = self.pod.volumes().mapping(self.spec)
        return [mapping(expand(part, self.environment)) for part in given]

    @property
    def folder(self):
        """The working directory."""
        given = self.pod.volumes().mapping(self.spec)(self.spec.get("workingDir", ""))
        return given if given and Path(given).is_dir() else self.pod.folder

    def _run_once(self):
        """Start it and wait for its end; return the exit code."""
        entrypoint = (self.pod.kubelet.images or {}).get(self.spec["image"], [])
        given = [*(self.spec.get("command") or entrypoint), *self.spec.get("args", [])]
        logs = self.pod.kubelet.server.logs
        run = logs.start(self.pod.pod, self.name)
        started_at = now()
        self.ending = ""
        try:
            processes = self._start(given, lambda line: logs.write(run, line))
        except (OSError, IndexError) as error:
            logs.finish(run)
            return self._end(128, "StartError", started_at, f"{given}: {error}")
        self._state = {"running": {"startedAt": started_at}}
        prober = Prober(self)
        self.pod.report()
        prober.start()
        code = processes.wait()
        prober.stop()
        logs.finish(run)
        reason = self.ending or ("Error" if code else "Completed")
        return self._end(code, reason, started_at)

    def _start(self, given, write):
        with self._lock:  # `signal` and `stop` wait until it is there
            self._processes = Processes(
                *(self.command(given), self.environment, self.folder, write)
            )
            if self.pod.stopping.is_set():  # `stop` may have checked just before
                self._processes.signal(signal.SIGKILL)
            return self._processes

    def _end(self, code, reason, started_at, message=""):
        with self._lock:
            self._processes = None
        terminated = {"exitCode": code, "reason": reason, "startedAt": started_at}
        terminated |= {"finishedAt": now()} | ({"message": message} if message else {})
        self._state = {"terminated": terminated}
        self.started = self.ready = False
        self.pod.report()
        return code

    def signal(self, number, reason=""):
        """Send a signal from outside; `reason` is the reason in the container's status."""
        with self._lock:
            processes = self._processes
        if processes is not None:
            self.ending = reason
            processes.signal(number)

    def process_ids(self):
        with self._lock:
            processes = self._processes
        return processes.ids() if processes else []

    def stop(self, grace):
        """Stop it as the kubelet does: preStop, SIGTERM, and SIGKILL when the grace is over.

        Args:
            grace: Seconds for all of it; 0 kills at once.
        """
        with self._lock:
            processes = self._processes
        if processes is None:
            return
        deadline = time.monotonic() + grace
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and grace:
            run_hook(self, hook, grace, processes.ended)
        if grace:
            processes.signal(signal.SIGTERM)
        if not processes.ended.wait(max(0.0, deadline - time.monotonic())):
            processes.signal(signal.SIGKILL)

    def execute(self, command, timeout):
        """Run a command in it, for at most `timeout` seconds; return whether it succeeded."""
        with self._lock:
            processes = self._processes
        return processes is not None and processes.execute(self.command(command), timeout)
