"""One pod on its node: init containers in order, then all containers; its status."""

import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from kube.clock import now
from kube.container import Container
from kube.controller import set_condition
from kube.environment import Volumes
from kube.errors import ApiError


class PodRunner:
    """Runs a pod that was bound to a node, in threads of its own, until it ends or is stopped.

    Args:
        kubelet: The `Kubelet` it belongs to.
        pod: The pod as bound.
        address: Its IP, one of 127.x.
    """

    def __init__(self, kubelet, pod, address):
        self.kubelet = kubelet
        self.pod = pod
        self.address = address
        self.folder = Path(tempfile.mkdtemp(prefix="pod-"))
        self.stopping = threading.Event()
        spec = pod["spec"]
        policy = spec.get("restartPolicy", "Always")
        self.grace = spec.get("terminationGracePeriodSeconds", 30)
        init_policy = "Never" if policy == "Never" else "OnFailure"
        self._init = [Container(self, each, init_policy) for each in spec.get("initContainers", [])]
        waits_for = "PodInitializing" if self._init else "ContainerCreating"
        self._main = [Container(self, each, policy, waits_for) for each in spec["containers"]]
        self._policy = policy
        self._volumes = None
        self._lock = threading.RLock()
        self._status = {"phase": "Pending", "startTime": now(), "hostIP": "127.0.0.1"}
        self._status |= {"podIP": address, "podIPs": [{"ip": address}], "conditions": []}
        set_condition(self._status["conditions"], "PodScheduled", "True")
        self._initialized = False
        self._over = False  # nothing more is reported
        self.report()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def name(self):
        return self.pod["metadata"]["name"]

    def volumes(self):
        """Return the pod's volumes, made at the first call that finds all they need."""
        with self._lock:
            if self._volumes is None:
                shutil.rmtree(self.folder / "volumes", ignore_errors=True)
                self._volumes = Volumes(self.kubelet.server, self.pod, self.folder)
            return self._volumes

    def refresh_volumes(self):
        """Bring changed Secrets and ConfigMaps to the pod's folders."""
        with self._lock:
            if self._volumes is not None and not self._over:
                self._volumes.refresh(self.kubelet.volume_lag)

    def current(self):
        """Return the pod with the status of now, for its environment."""
        return self.pod | {"status": self._status}

    def record(self, type_, reason, message):
        if not self._over:
            with suppress(ApiError):
                self.kubelet.record(self.pod, type_, reason, message)

    def _run(self):
        for each in self._init:
            each.run()
            if each.exit_code != 0:
                break
        else:
            with self._lock:
                self._initialized = True
            self.report()
            threads = [threading.Thread(target=each.run, daemon=True) for each in self._main]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.report()

    def report(self):
        """Write the pod's status to the server."""
        with self._lock:
            if self._over:
                return
            status = self._status
            status["initContainerStatuses"] = [each.status() for each in self._init]
            status["containerStatuses"] = [each.status() for each in self._main]
            status["phase"] = self._phase()
            ready = all(each.ready for each in self._main) and status["phase"] == "Running"
            for type_, holds in (
                ("Initialized", self._initialized),
                ("ContainersReady", ready),
                ("Ready", ready),
            ):
                set_condition(status["conditions"], type_, "True" if holds else "False")
            self._write()

    def _phase(self):
        if any(each.exit_code not in (None, 0) for each in self._init):
            return "Failed"
        states = [each.status()["state"] for each in self._main]
        if all(each.exit_code is not None for each in self._main):
            return "Failed" if any(each.exit_code for each in self._main) else "Succeeded"
        begun = [("waiting" not in state) for state in states]
        restarted = [bool(each.status()["lastState"]) for each in self._main]
        return "Running" if any(begun) or any(restarted) else "Pending"

    def _write(self):
        uid = self.pod["metadata"]["uid"]

        def change(pod):
            if pod["metadata"]["uid"] == uid:
                pod["status"] = self._status

        meta = self.pod["metadata"]
        with suppress(ApiError):  # it is gone already
            self.kubelet.server.update(
                "Pod", meta["name"], change, status=True, namespace=meta["namespace"]
            )

    def stop(self, grace):
        """Stop the pod in `grace` seconds, then take it from the server."""
        with self._lock:
            if self.stopping.is_set():
                return
            self.stopping.set()
        self.record("Normal", "Killing", f"Stopping pod {self.name}")
        threading.Thread(target=self._stop, args=(grace,), daemon=True).start()

    def _stop(self, grace):
        stops = [
            threading.Thread(target=each.stop, args=(grace,), daemon=True)
            for each in (*self._init, *self._main)
        ]
        for each in stops:
            each.start()
        self._thread.join()
        meta = self.pod["metadata"]
        with suppress(ApiError):  # deleted without grace
            self.kubelet.server.delete(
                "Pod", meta["name"], meta["namespace"], grace=0, uid=meta["uid"]
            )

    def kill(self):
        """Kill all processes without a report: the node or the pod is gone."""
        self._over = True
        self.stopping.set()
        for each in (*self._init, *self._main):
            each.stop(0)
        self._thread.join()

    def close(self):
        """Kill, and remove the pod's folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def containers(self, name=None):
        """Return its containers, or the one of this name."""
        return [each for each in (*self._init, *self._main) if name in (None, each.name)]
