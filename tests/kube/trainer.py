"""TrainJobs as Kubeflow Trainer 2.2 handles them, with the JobSet and the Job behind them.

Pods belong to the TrainJob itself here; labels, names and events are as JobSet's and the Job's.
"""

import random
import string
from copy import deepcopy

from kube.clock import seconds_since
from kube.controller import Controller, is_controlled_by, is_true, owner_of, set_condition
from kube.errors import ApiError
from kube.training_environment import free_port

_ACTIVE = ("Running", "Pending")
_INDEX = "batch.kubernetes.io/job-completion-index"
_JOBSET = "jobset.sigs.k8s.io"


class Trainer(Controller):
    """Creates pods and a headless Service for TrainJobs, and sets their status.

    Args:
        server: The `KubeServer`.
    """

    name = "trainjob-controller"

    def __init__(self, server):
        super().__init__(server)
        self._ports = {}

    def reconcile(self):
        jobs = self.server.store.list("TrainJob")
        pauses = [
            self._reconcile(job) for job in jobs if "deletionTimestamp" not in job["metadata"]
        ]
        return min((each for each in pauses if each is not None), default=None)

    def _reconcile(self, job):
        """Reconcile one job; return after how many seconds to look again."""
        status = job.setdefault("status", {})
        status.setdefault("conditions", [])
        if is_true(job, "Complete") or is_true(job, "Failed"):
            return None
        pods = self._pods_of(job)
        deadline = self._deadline(job)
        pause = deadline
        if job["spec"].get("suspend"):
            self._delete(pods)
            _set(job, "Suspended", "Suspended", "TrainJob is suspended")
            status["jobsStatus"] = [_counts(suspended=1)]
        elif deadline is not None and deadline <= 0:
            self._delete(pods)
            _set(job, "Failed", "DeadlineExceeded", "TrainJob exceeded its active deadline")
        else:
            if is_true(job, "Suspended"):
                _set(job, "Suspended", "Resumed", "TrainJob is resumed", "False")
            if self._run(job, pods):
                pause = 0.1  # something was refused
        self.server.update(
            *("TrainJob", _name(job), lambda obj: obj.update(status=status)),
            status=True,
            namespace=job["metadata"]["namespace"],
        )
        return pause

    def _deadline(self, job):
        """Return the seconds that a job has left, or None."""
        limit = job["spec"].get("activeDeadlineSeconds")
        if limit is None or job["spec"].get("suspend"):
            return None
        since = job["metadata"]["creationTimestamp"]
        for each in job["status"]["conditions"]:
            if each["type"] == "Suspended" and each["status"] == "False":
                since = each["lastTransitionTime"]
        return limit - seconds_since(since)

    def _run(self, job, pods):
        """Create missing pods and set the status; return whether a pod was refused."""
        runtime = self._runtime(job)
        if runtime is None:
            message = "TrainJob resources reconciliation failed: TrainingRuntime is not found"
            self.record(job, "Warning", "TrainJobResourcesCreationFailed", message)
            return True
        number = job["spec"]["trainer"].get("numNodes", 1)
        alive = {_index(pod): pod for pod in pods if pod["status"]["phase"] != "Failed"}
        self._make_service(job)
        refused = False
        for index in sorted(set(range(number)) - set(alive)):
            refused = self._create(job, runtime, index) or refused
        phases = [pod["status"]["phase"] for pod in alive.values()]
        done = phases.count("Succeeded")
        ready = done + sum(is_true(pod, "Ready") for pod in alive.values())
        if done == number:
            job["status"]["jobsStatus"] = [_counts(ready=1, succeeded=1)]
            _set(job, "Complete", "AllJobsCompleted", "jobset completed successfully")
        elif _failures(pods) > _job_of(runtime)["spec"].get("backoffLimit", 6):
            job["status"]["jobsStatus"] = [_counts(failed=1)]
            self._delete([pod for pod in pods if pod["status"]["phase"] in _ACTIVE])
            why = f"jobset failed due to one or more job failures (first failed job: {_child(job)})"
            _set(job, "Failed", "FailedJobs", why)
        else:
            active = int(any(phase in _ACTIVE for phase in phases))
            job["status"]["jobsStatus"] = [_counts(ready=int(ready == number), active=active)]
        return refused

    def _runtime(self, job):
        name, namespace = job["spec"]["runtimeRef"]["name"], job["metadata"]["namespace"]
        return self.server.find("TrainingRuntime", name, namespace)

    def _make_service(self, job):
        namespace = job["metadata"]["namespace"]
        if self.server.find("Service", _name(job), namespace) is None:
            own = {"name": _name(job), "ownerReferences": [owner_of(job)]}
            selector = {f"{_JOBSET}/jobset-name": _name(job)}
            spec = {"clusterIP": "None", "selector": selector, "publishNotReadyAddresses": True}
            self.server.create("Service", {"metadata": own, "spec": spec}, namespace)

    def _create(self, job, runtime, index):
        """Create one pod; return whether it was refused."""
        port = self._ports.setdefault(job["metadata"]["uid"], free_port())
        pod = pod_of(job, runtime, index, port)
        pod["metadata"]["ownerReferences"] = [owner_of(job)]
        try:
            self.server.create("Pod", pod, job["metadata"]["namespace"])
        except ApiError as error:
            child = {"apiVersion": "batch/v1", "kind": "Job"}
            child["metadata"] = {**job["metadata"], "name": _child(job)}
            self.record(child, "Warning", "FailedCreate", f"Error creating: {error}")
            return True
        return False

    def _pods_of(self, job):
        found = self.server.list(
            *("Pod", f"{_JOBSET}/jobset-name={_name(job)}"), namespace=job["metadata"]["namespace"]
        )
        return [each for each in found if is_controlled_by(each, job)]

    def _delete(self, pods):
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                self.server.delete("Pod", _name(pod), pod["metadata"]["namespace"])


def pod_of(job, runtime, index=0, port=29500):
    """Return the pod of one node: that of the runtime, with what the job says.

    Args:
        job: The TrainJob.
        runtime: Its TrainingRuntime.
        index: Number of the node.
        port: Of the first node; nodes share this machine's ports here.
    """
    trainer, name = job["spec"]["trainer"], _name(job)
    pod = deepcopy(_job_of(runtime)["spec"]["template"])
    for patch in job["spec"].get("runtimePatches", []):
        for each in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            assert each["name"] == "node"
            _merge(pod, each["template"]["spec"]["template"])
    (container,) = [each for each in pod["spec"]["containers"] if each["name"] == "node"]
    container |= {key: trainer[key] for key in ("image", "command", "args") if key in trainer}
    container["resources"] = trainer["resourcesPerNode"]
    container["env"] = [*trainer.get("env", []), *_environment(trainer, name, port)]
    labels = {
        f"{_JOBSET}/jobset-name": name,
        f"{_JOBSET}/replicatedjob-name": "node",
        "batch.kubernetes.io/job-name": _child(job),
        _INDEX: str(index),
    }
    meta = pod.setdefault("metadata", {})
    suffix = "".join(random.choices(string.ascii_lowercase, k=5))
    meta["name"] = f"{_child(job)}-{index}-{suffix}"
    meta["labels"] = {**meta.get("labels", {}), **labels}
    meta["annotations"] = {**meta.get("annotations", {}), _INDEX: str(index)}
    pod["spec"] |= {"hostname": f"{_child(job)}-{index}", "subdomain": name}
    return pod


def _environment(trainer, name, port):
    rank = {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX}']"}}
    values = {
        "PET_NNODES": str(trainer.get("numNodes", 1)),
        "PET_NPROC_PER_NODE": str(trainer.get("numProcPerNode", "auto")),
        "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
        "PET_MASTER_PORT": str(port),
    }
    plain = [{"name": key, "value": value} for key, value in values.items()]
    return [*plain, {"name": "PET_NODE_RANK", "valueFrom": rank}]


def _merge(target, patch):
    """Merge as a strategic patch does: lists of named things by their names."""
    for key, value in patch.items():
        if isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        elif isinstance(value, list) and value and "name" in value[0] and key != "tolerations":
            named = {each["name"]: each for each in target.setdefault(key, [])}
            for each in value:
                if each["name"] in named:
                    _merge(named[each["name"]], each)
                else:
                    target[key].append(each)
        else:
            target[key] = value


def _job_of(runtime):
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]


def _failures(pods):
    """Return what counts for the Job's backoff limit."""
    restarts = sum(
        status["restartCount"]
        for pod in pods
        for status in pod["status"].get("containerStatuses", [])
    )
    return restarts + sum(pod["status"]["phase"] == "Failed" for pod in pods)


def _counts(**given):
    return {"name": "node", "ready": 0, "succeeded": 0, "failed": 0, "active": 0} | {
        "suspended": 0,
        **given,
    }


def _set(job, type_, reason, message, status="True"):
    set_condition(job["status"]["conditions"], type_, status, reason, message)


def _name(obj):
    return obj["metadata"]["name"]


def _child(job):
    """Return the name of the Job that makes the pods."""
    return f"{_name(job)}-node-0"


def _index(pod):
    return int(pod["metadata"]["labels"][_INDEX])
