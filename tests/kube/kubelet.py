"""Nodes that run pods as processes of this machine, and the scheduler."""

import itertools
import random
import signal

from kube.clock import now
from kube.controller import Controller, set_condition
from kube.errors import ApiError
from kube.pod_runner import PodRunner
from kube.quantity import quantity, requests_of
from kube.selectors import matches_map


class Kubelet(Controller):
    """All nodes of the cluster.

    Args:
        server: The `KubeServer` whose pods it runs.
        images: What can be pulled, each with its entry point: `{"serving:1": ["python", "-m",
            "polarmask_serving.torchserve.pod"]}`; a test may add to it later. None: everything,
            without one.
        nodes: Node name -> its extended resources: `{"a": {"nvidia.com/gpu": 2}}`.
            cpu and memory are checked if given.
        backoff: Seconds before the second restart of a container; doubled at each further one.
        volume_lag: Seconds until a changed Secret or ConfigMap is in the pods' folders; about
            a minute in clusters.
    """

    name = "kubelet"

    def __init__(self, server, images=None, nodes=None, backoff=0.2, volume_lag=0):
        super().__init__(server)
        self.images = images
        self.backoff = backoff
        self.volume_lag = volume_lag
        self._nodes = nodes or {"node-0": {}}
        self._runners = {}  # uid -> PodRunner
        # Addresses that no other test process on this machine is likely to use.
        network = f"127.{random.randrange(16, 255)}.{random.randrange(256)}"
        self._addresses = (f"{network}.{host}" for host in itertools.cycle(range(1, 255)))
        for name, resources in self._nodes.items():
            condition = []
            set_condition(condition, "Ready", "True", "KubeletReady", "ready")
            node = {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}
            server.create("Node", node)
            amounts = {key: str(value) for key, value in resources.items()}
            status = {"allocatable": amounts, "capacity": amounts, "conditions": condition}
            server.update("Node", name, lambda obj, new=status: obj.update(status=new), status=True)

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for runner in self._runners.values():
            runner.close()

    def reconcile(self):
        pods = self.server.store.list("Pod")
        alive = {pod["metadata"]["uid"] for pod in pods}
        for uid in self._runners.keys() - alive:
            self._runners.pop(uid).close()
        for runner in self._runners.values():
            runner.refresh_volumes()
        for pod in pods:
            uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
            if "deletionTimestamp" in pod["metadata"]:
                self._stop(pod)
            elif not node:
                self._schedule(pod)
            elif node in self._nodes and uid not in self._runners:
                self._runners[uid] = PodRunner(self, pod, next(self._addresses))
        return 0.2 if self.volume_lag else None

    def _stop(self, pod):
        meta = pod["metadata"]
        if meta["uid"] in self._runners:
            self._runners[meta["uid"]].stop(meta["deletionGracePeriodSeconds"])
        elif pod["spec"]["nodeName"] in self._nodes:  # deleted before it was started
            self.server.delete("Pod", meta["name"], meta["namespace"], grace=0, uid=meta["uid"])

    def _schedule(self, pod):
        reasons = set()
        for node in self.server.store.list("Node"):
            reason = self._refusal(node, pod)
            if reason is None:
                self._bind(pod, node["metadata"]["name"])
                return
            reasons.add(reason)
        total = len(self.server.store.list("Node"))
        message = f"0/{total} nodes are available: {', '.join(sorted(reasons))}."

        def change(obj):
            conditions = obj["status"].setdefault("conditions", [])
            set_condition(conditions, "PodScheduled", "False", "Unschedulable", message)

        meta = pod["metadata"]
        self.server.update("Pod", meta["name"], change, status=True, namespace=meta["namespace"])
        self.record(pod, "Warning", "FailedScheduling", message)

    def _bind(self, pod, node):
        meta = pod["metadata"]
        self.server.update(
            *("Pod", meta["name"], lambda obj: obj["spec"].update(nodeName=node)),
            namespace=meta["namespace"],
        )

    def _refusal(self, node, pod):
        """Return why a pod does not fit on a node, or None."""
        spec = pod["spec"]
        if node.get("spec", {}).get("unschedulable"):
            return "node(s) were unschedulable"
        if not matches_map(spec.get("nodeSelector", {}), node["metadata"].get("labels")):
            return "node(s) didn't match Pod's node affinity/selector"
        for taint in node.get("spec", {}).get("taints", []):
            if not any(_tolerates(each, taint) for each in spec.get("tolerations", [])):
                return f"node(s) had untolerated taint {{{taint['key']}}}"
        allocatable = node["status"]["allocatable"]
        used = self._used_on(node["metadata"]["name"])
        for name, amount in requests_of(spec).items():
            has = quantity(allocatable.get(name, "0"))
            if (name in allocatable or "/" in name) and used.get(name, 0) + amount > has:
                return f"Insufficient {name}"
        return None

    def _used_on(self, node):
        used = {}
        for pod in self.server.store.list("Pod", fields=f"spec.nodeName={node}"):
            if pod["status"]["phase"] in ("Pending", "Running"):
                for name, amount in requests_of(pod["spec"]).items():
                    used[name] = used.get(name, 0) + amount
        return used

    def kill_pod(self, name, number=signal.SIGKILL, container=None, reason=""):
        """Send a signal to the containers of a pod; `reason` is for the status: OOMKilled."""
        for each in self._runner(name).containers(container):
            each.signal(number, reason)

    def process_ids(self, name, container=None):
        """Return the ids of all processes in a pod, each container's first one first."""
        containers = self._runner(name).containers(container)
        return [pid for each in containers for pid in each.process_ids()]

    def _runner(self, name):
        for runner in list(self._runners.values()):
            if runner.name == name:
                return runner
        raise KeyError(f"no pod {name} runs here: {[r.name for r in self._runners.values()]}")

    def lose_node(self, name):
        """Remove a node like a spot node: without SIGTERM; its pods are deleted later."""
        self.server.update(
            *("Node", name, lambda node: node.setdefault("spec", {}).update(unschedulable=True))
        )
        del self._nodes[name]
        for pod in self.server.store.list("Pod", fields=f"spec.nodeName={name}"):
            meta = pod["metadata"]
            runner = self._runners.get(meta["uid"])
            if runner is not None:
                runner.kill()
            try:
                self.server.update(
                    *("Pod", meta["name"], _fail),
                    status=True,
                    namespace=meta["namespace"],
                )
                self.server.delete("Pod", meta["name"], meta["namespace"], grace=0)
            except ApiError:  # deleted in the meantime
                continue
        self.server.delete("Node", name)


def _fail(pod):
    conditions = pod["status"].setdefault("conditions", [])
    message = "PodGC: node no longer exists"
    set_condition(conditions, "DisruptionTarget", "True", "DeletionByPodGC", message)
    if pod["status"]["phase"] not in ("Succeeded", "Failed"):
        pod["status"] |= {"phase": "Failed", "reason": "NodeLost", "message": message}
    for each in pod["status"].get("containerStatuses", []):
        if "terminated" not in each["state"]:
            ended = {"exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": now()}
            each["state"] = {"terminated": ended}


def _tolerates(toleration, taint):
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    same = toleration.get("key"), toleration.get("value", "")
    return same == (taint["key"], taint.get("value", ""))
