"""Rolling updates of Deployments, pod by pod, as kube-controller-manager does them."""

import hashlib
import json
import math
import time
from copy import deepcopy

from kube.clock import seconds_since
from kube.controller import Controller, is_controlled_by, is_true, owner_of, set_condition
from kube.errors import ApiError

_HASH = "pod-template-hash"
_REVISION = "deployment.kubernetes.io/revision"


class DeploymentController(Controller):
    """Keeps ReplicaSets and pods as Deployments want them."""

    name = "deployment-controller"

    def __init__(self, server):
        super().__init__(server)
        self._progress = {}  # uid -> (what counted as progress, when it was seen last)

    def reconcile(self):
        pauses = []
        for deployment in self.server.store.list("Deployment"):
            if "deletionTimestamp" not in deployment["metadata"]:
                pauses.append(self._reconcile(deployment))
        return min((each for each in pauses if each is not None), default=None)

    def _reconcile(self, deployment):
        """Do one step of a rollout; return after how many seconds it changes without an event."""
        sets = self._replica_sets(deployment)
        new = self._new_set(deployment, sets)
        old = [each for each in sets if each["metadata"]["name"] != new["metadata"]["name"]]
        pods = {each["metadata"]["name"]: self._pods_of(each) for each in (new, *old)}
        self._roll(deployment, new, old, pods)
        for each in (new, *old):
            self._reconcile_set(each, self._pods_of(each))
        return self._report(deployment, new, old)

    def _replica_sets(self, deployment):
        found = self.server.list("ReplicaSet", namespace=deployment["metadata"]["namespace"])
        return [each for each in found if is_controlled_by(each, deployment)]

    def _new_set(self, deployment, sets):
        """Return the ReplicaSet of the Deployment's current template; create it if needed."""
        template = deployment["spec"]["template"]
        text = json.dumps(template, sort_keys=True).encode()
        digest = hashlib.sha256(text).hexdigest()[:10]
        revisions = [int(each["metadata"]["annotations"][_REVISION]) for each in sets]
        newest = max(revisions, default=0)
        for each, revision in zip(sets, revisions, strict=True):
            if each["metadata"]["labels"][_HASH] == digest:
                if revision < newest:  # rolled back to it
                    each = self._change(each, _with_revision(newest + 1))
                return each
        meta = deployment["metadata"]
        labels = {**template["metadata"]["labels"], _HASH: digest}
        template = deepcopy(template)
        template["metadata"]["labels"] = labels
        replica_set = {
            "metadata": {
                "name": f"{meta['name']}-{digest}",
                "labels": labels,
                "annotations": {_REVISION: str(newest + 1)},
                "ownerReferences": [owner_of(deployment)],
            },
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
        }
        return self.server.create("ReplicaSet", replica_set, meta["namespace"])

    def _roll(self, deployment, new, old, pods):
        """Set the sizes of the ReplicaSets as the strategy allows at this moment."""
        wanted, surge, unavailable = _limits(deployment)
        if deployment["spec"].get("paused"):
            return
        if not old or all(not _size(each) for each in old):
            self._resize(new, wanted)
            return
        if _strategy(deployment).get("type") == "Recreate":
            for each in old:
                self._resize(each, 0)
            if not any(pods[each["metadata"]["name"]] for each in old):
                self._resize(new, wanted)
            return
        total = _size(new) + sum(map(_size, old))
        grown = min(wanted, _size(new) + max(0, wanted + surge - total))
        total += grown - _size(new)
        self._resize(new, grown)
        self._shrink_old(deployment, new, old, pods, total - (wanted - unavailable))

    def _shrink_old(self, deployment, new, old, pods, spare):
        """Delete old pods: first those that are not ready, then as many as the strategy allows."""
        ready = self._available(deployment, pods[new["metadata"]["name"]])
        spare -= _size(new) - len(ready)
        for healthy in (False, True):
            for each in old:
                size = _size(each)
                available = len(self._available(deployment, pods[each["metadata"]["name"]]))
                candidates = available if healthy else max(0, size - available)
                gone = max(0, min(spare, candidates, size))
                self._resize(each, size - gone)
                spare -= gone

    def _resize(self, replica_set, size):
        if _size(replica_set) != size:
            replica_set["spec"]["replicas"] = size
            self._change(replica_set, lambda obj: obj["spec"].update(replicas=size))

    def _change(self, obj, change):
        meta = obj["metadata"]
        return self.server.update(*(obj["kind"], meta["name"], change), namespace=meta["namespace"])

    def _reconcile_set(self, replica_set, pods):
        """Make or delete pods until a ReplicaSet has as many as it wants."""
        meta, spec = replica_set["metadata"], replica_set["spec"]
        pods = [pod for pod in pods if pod["status"]["phase"] not in ("Succeeded", "Failed")]
        for _ in range(_size(replica_set) - len(pods)):
            pod = deepcopy(spec["template"])
            pod["metadata"] |= {"generateName": f"{meta['name']}-"}
            pod["metadata"]["ownerReferences"] = [owner_of(replica_set)]
            try:
                self.server.create("Pod", pod, meta["namespace"])
            except ApiError as error:
                self.record(replica_set, "Warning", "FailedCreate", f"Error creating: {error}")
                break
        surplus = max(0, len(pods) - _size(replica_set))
        for pod in sorted(pods, key=lambda pod: is_true(pod, "Ready"))[:surplus]:
            self.server.delete("Pod", pod["metadata"]["name"], meta["namespace"])

    def _pods_of(self, replica_set):
        """Return a ReplicaSet's pods that are not terminating."""
        labels = f"{_HASH}={replica_set['metadata']['labels'][_HASH]}"
        found = self.server.list("Pod", labels, namespace=replica_set["metadata"]["namespace"])
        return [
            pod
            for pod in found
            if is_controlled_by(pod, replica_set) and "deletionTimestamp" not in pod["metadata"]
        ]

    def _available(self, deployment, pods):
        min_ready = deployment["spec"].get("minReadySeconds", 0)
        return [pod for pod in pods if _ready_for(pod) >= min_ready]

    def _report(self, deployment, new, old):
        """Write the status; return after how many seconds it changes without an event."""
        wanted, _, unavailable = _limits(deployment)
        updated = self._pods_of(new)
        pods = [*updated, *(pod for each in old for pod in self._pods_of(each))]
        available = len(self._available(deployment, pods))
        counts = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": len(updated),
            "readyReplicas": sum(is_true(pod, "Ready") for pod in pods),
            "availableReplicas": available,
            "unavailableReplicas": max(0, wanted - available),
        }
        done = available == len(pods) == len(updated) == wanted
        conditions = deepcopy(deployment.get("status", {}).get("conditions", []))
        enough = "True" if available >= wanted - unavailable else "False"
        reason = "MinimumReplicasAvailable" if enough == "True" else "MinimumReplicasUnavailable"
        set_condition(conditions, "Available", enough, reason, "")
        left = self._set_progress(deployment, conditions, new, counts, done)
        status = {name: number for name, number in counts.items() if number}
        status["conditions"] = conditions
        meta = deployment["metadata"]
        self.server.update(
            *("Deployment", meta["name"], lambda obj: obj.update(status=status)),
            status=True,
            namespace=meta["namespace"],
        )
        waiting = deployment["spec"].get("minReadySeconds") and available < counts["readyReplicas"]
        return 0.2 if waiting else left

    def _set_progress(self, deployment, conditions, new, counts, done):
        """Set the condition Progressing; return the seconds until its deadline, if one runs."""
        uid = deployment["metadata"]["uid"]
        seen, since = self._progress.get(uid, (None, 0.0))
        if seen != counts:
            since = time.monotonic()
            self._progress[uid] = (counts, since)
        name = new["metadata"]["name"]
        if done:
            message = f'ReplicaSet "{name}" has successfully progressed.'
            set_condition(conditions, "Progressing", "True", "NewReplicaSetAvailable", message)
            return None
        finished = any(
            each["type"] == "Progressing" and each["reason"] == "NewReplicaSetAvailable"
            for each in conditions
        )
        if finished and deployment["status"]["observedGeneration"] == counts["observedGeneration"]:
            return None  # a pod failed after a finished rollout
        deadline = deployment["spec"].get("progressDeadlineSeconds", 600)
        left = deadline - (time.monotonic() - since)
        if left > 0:
            message = f'ReplicaSet "{name}" is progressing.'
            set_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", message)
            return left
        message = f'ReplicaSet "{name}" has timed out progressing.'
        set_condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded", message)
        return None


def _with_revision(revision):
    return lambda obj: obj["metadata"]["annotations"].update({_REVISION: str(revision)})


def _size(replica_set):
    return replica_set["spec"]["replicas"]


def _strategy(deployment):
    return deployment["spec"].get("strategy") or {}


def _limits(deployment):
    """Return the wanted number of pods, the surplus and the shortage allowed."""
    wanted = deployment["spec"].get("replicas", 1)
    rolling = _strategy(deployment).get("rollingUpdate") or {}
    surge = _share(rolling.get("maxSurge", "25%"), wanted, math.ceil)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), wanted, math.floor)
    return wanted, surge, unavailable if surge or unavailable else 1


def _share(value, wanted, rounded):
    if isinstance(value, str):
        return rounded(int(value.rstrip("%")) * wanted / 100)
    return value


def _ready_for(pod):
    """Return for how many seconds a pod has been Ready; -1 if it is not ready."""
    for each in pod["status"].get("conditions", []):
        if each["type"] == "Ready" and each["status"] == "True":
            return max(0.0, seconds_since(each["lastTransitionTime"]))
    return -1
