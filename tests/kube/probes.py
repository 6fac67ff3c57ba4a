"""Probes and hooks of containers, over HTTP or by a command."""

import http.client
import signal
import socket
import threading


class Prober:
    """Runs the probes of one start of a container, and acts on their results."""

    def __init__(self, container):
        self._container = container
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        spec = container.spec
        self._startup = spec.get("startupProbe")
        self._liveness = spec.get("livenessProbe")
        self._readiness = spec.get("readinessProbe")
        container.started = self._startup is None
        container.ready = container.started and self._readiness is None

    def start(self):
        if self._startup or self._liveness or self._readiness:
            self._thread.start()

    def stop(self):
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self):
        if self._startup:
            if not self._passes(self._startup, until_success=True):
                return
            self._container.started = True
            self._container.ready = self._readiness is None
            self._container.pod.report()
        liveness = threading.Thread(target=self._passes, args=(self._liveness,), daemon=True)
        if self._liveness:
            liveness.start()
        if self._readiness:
            self._follow_readiness()
        if self._liveness:
            liveness.join()

    def _passes(self, probe, *, until_success=False):
        """Repeat a probe whose failure ends the container; True after a success, if asked."""
        failures = 0
        self._over.wait(probe.get("initialDelaySeconds", 0))
        while not self._over.is_set():
            if _succeeds(self._container, probe):
                if until_success:
                    return True
                failures = 0
            elif not self._container.pod.stopping.is_set():
                failures += 1
            if failures >= probe.get("failureThreshold", 3):
                kind = "Startup" if until_success else "Liveness"
                self._container.pod.record("Warning", "Unhealthy", f"{kind} probe failed")
                self._end_container()
                return False
            self._over.wait(probe.get("periodSeconds", 10))
        return False

    def _end_container(self):
        grace = self._container.pod.grace
        self._container.signal(signal.SIGTERM)
        if not self._over.wait(grace):
            self._container.signal(signal.SIGKILL)

    def _follow_readiness(self):
        probe, streak, last = self._readiness, 0, None
        self._over.wait(probe.get("initialDelaySeconds", 0))
        while not self._over.is_set():
            answer = _succeeds(self._container, probe)
            streak = streak + 1 if answer == last else 1
            last = answer
            default = 1 if answer else 3
            threshold = probe.get("successThreshold" if answer else "failureThreshold", default)
            if streak >= threshold and self._container.ready != answer:
                if self._over.is_set():
                    return
                self._container.ready = answer
                self._container.pod.report()
            self._over.wait(probe.get("periodSeconds", 10))


def _succeeds(container, probe):
    timeout = probe.get("timeoutSeconds", 1)
    try:
        if "httpGet" in probe:
            return 200 <= _get(container, probe["httpGet"], timeout) < 400
        if "tcpSocket" in probe:
            port = _port(container, probe["tcpSocket"]["port"])
            socket.create_connection((container.pod.address, port), timeout).close()
            return True
        return container.execute(probe["exec"]["command"], timeout)
    except (OSError, http.client.HTTPException):
        return False


def _get(container, action, timeout):
    host = action.get("host", container.pod.address)
    connection = http.client.HTTPConnection(host, _port(container, action["port"]), timeout=timeout)
    headers = {each["name"]: each["value"] for each in action.get("httpHeaders", [])}
    try:
        connection.request("GET", action.get("path", "/"), headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _port(container, port):
    if isinstance(port, int):
        return port
    ports = container.spec.get("ports", [])
    return next(each["containerPort"] for each in ports if each.get("name") == port)


def run_hook(container, hook, grace, ended):
    """Run a preStop hook for at most `grace` seconds; its result is not used.

    Args:
        container: The container to stop.
        hook: Its hook.
        grace: Seconds.
        ended: Set when the container ends by itself.
    """
    if "sleep" in hook:
        ended.wait(min(grace, hook["sleep"]["seconds"]))
        return
    try:
        if "httpGet" in hook:
            _get(container, hook["httpGet"], grace)
        else:
            container.execute(hook["exec"]["command"], grace)
    except (OSError, http.client.HTTPException):
        container.pod.record("Warning", "FailedPreStopHook", "PreStopHook failed")
