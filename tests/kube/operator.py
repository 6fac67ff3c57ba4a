"""PyTorchJobs as training-operator 1.9 handles them."""

from copy import deepcopy

from kube.clock import now, seconds_since
from kube.controller import Controller, is_controlled_by, is_true, owner_of, set_condition
from kube.errors import ApiError
from kube.training_environment import environment_of, port_of

_LABEL = "training.kubeflow.org"
_ACTIVE = ("Running", "Pending")
INIT_IMAGE = "alpine:3.10"
"""From a public registry, which many clusters can't reach."""


class TrainingOperator(Controller):
    """Creates pods and headless Services for PyTorchJobs, and sets the conditions of the jobs.

    Args:
        server: The `KubeServer`.
        init_security: securityContext of the container that it puts before a worker beside a
            Master. As installed it has none, and a namespace that enforces Pod Security
            `restricted` refuses such workers; an administrator may give it one.
    """

    name = "pytorchjob-controller"

    def __init__(self, server, init_security=None):
        super().__init__(server)
        self._init_security = init_security
        self._ports = {}

    def reconcile(self):
        jobs = self.server.store.list("PyTorchJob")
        pauses = [
            self._reconcile(job) for job in jobs if "deletionTimestamp" not in job["metadata"]
        ]
        return min((each for each in pauses if each is not None), default=None)

    def _reconcile(self, job):
        """Reconcile one job; return after how many seconds its next deadline is."""
        policy = job["spec"].get("runPolicy", {})
        pods = self._owned(job, "Pod")
        status = job.setdefault("status", {})
        status.setdefault("conditions", [])
        if is_true(job, "Succeeded") or is_true(job, "Failed"):
            return self._clean_up(job, policy, pods)
        if not status["conditions"]:  # written at the end: never, if a pod is refused
            self._set(job, "Created", f"PyTorchJob {_name(job)} is created.")
        if policy.get("suspend"):
            return self._suspend(job, pods)
        if is_true(job, "Suspended"):
            self._set(job, "Suspended", f"PyTorchJob {_name(job)} is resumed.", "False", "Resumed")
            status["startTime"] = now()
        status.setdefault("startTime", now())
        why = _over_limit(job, policy, pods)
        if why:
            for pod in pods:
                self._delete_replica(pod)
            self._fail(job, f"Job {_name(job)} has failed because it {why}")
        else:
            self._reconcile_replicas(job, pods)
        self._write(job)
        if "activeDeadlineSeconds" in policy:
            return max(0.05, policy["activeDeadlineSeconds"] - seconds_since(status["startTime"]))
        return None

    def _reconcile_replicas(self, job, pods):
        """Create missing pods, delete those that may be retried, count the rest."""
        by_name = {_name(pod): pod for pod in pods}
        statuses = job["status"]["replicaStatuses"] = {}
        for type_, replica in _replicas_of(job).items():
            counts = {"active": 0, "succeeded": 0, "failed": 0}
            for index in range(replica.get("replicas", 1)):
                name = f"{_name(job)}-{type_.lower()}-{index}"
                pod = by_name.pop(name, None)
                if pod is None:
                    self._create_replica(job, type_, index, replica, name)
                    continue
                self._retry_if_it_may(job, type_, replica, pod)
                _count(pod, counts)
            statuses[type_] = {key: number for key, number in counts.items() if number}
        for pod in by_name.values():  # the job was made smaller
            self._delete_replica(pod)
        self._set_conditions(job)

    def _retry_if_it_may(self, job, type_, replica, pod):
        if pod["status"]["phase"] != "Failed":
            return
        policy = replica.get("restartPolicy", "OnFailure")
        code = _exit_code(pod)
        message = f"job {_name(job)} is restarting because {type_} replica(s) failed."
        if policy in ("OnFailure", "Always") or (policy == "ExitCode" and code >= 128):
            self.server.delete("Pod", _name(pod), pod["metadata"]["namespace"])
            self._set(job, "Restarting", message)
        elif policy == "ExitCode":
            self._fail(job, f"job {_name(job)} is failing because {type_} replica(s) failed.")

    def _set_conditions(self, job):
        """Set the job's conditions from the counts of its replicas."""
        replicas, name = _replicas_of(job), _name(job)
        leader = "Master" if "Master" in replicas else "Worker"
        for type_, counts in job["status"]["replicaStatuses"].items():
            wanted = replicas[type_].get("replicas", 1)
            if type_ == leader and counts.get("active"):
                self._set(job, "Running", f"PyTorchJob {name} is running.")
            succeeded = counts.get("succeeded", 0)
            # One worker of an elastic job is enough; the others are cleaned up while they run.
            is_done = succeeded == wanted or (succeeded and "elasticPolicy" in job["spec"])
            if type_ == leader and is_done:
                job["status"].setdefault("completionTime", now())
                self._set(job, "Succeeded", f"PyTorchJob {name} is successfully completed.")
                return
            failed = counts.get("failed")
            if failed and replicas[type_].get("restartPolicy", "OnFailure") == "Never":
                why = f"{failed} {type_} replica(s) failed."
                self._fail(job, f"PyTorchJob {name} is failed because {why}")
            elif failed:
                why = f"{failed} {type_} replica(s) failed."
                self._set(job, "Restarting", f"PyTorchJob {name} is restarting because {why}")

    def _fail(self, job, message):
        job["status"].setdefault("completionTime", now())
        self._set(job, "Failed", message)

    def _set(self, job, type_, message, status="True", verb=None):
        """Set a condition and remove those that exclude it, as upstream does."""
        conditions = job["status"]["conditions"]
        if is_true(job, "Failed") or is_true(job, "Succeeded"):
            return
        excluded = {"Running": "Restarting", "Restarting": "Running"}.get(type_)
        conditions[:] = [each for each in conditions if each["type"] != excluded]
        reason = f"PyTorchJob{verb or type_}"
        if type_ in ("Failed", "Succeeded"):
            for each in conditions:
                if each["type"] == "Running":
                    each["status"] = "False"
        set_condition(conditions, type_, status, reason, message)
        kind = "Warning" if type_ in ("Failed", "Restarting") else "Normal"
        self.record(job, kind, reason, message)

    def _suspend(self, job, pods):
        for pod in pods:
            self._delete_replica(pod)
        message = f"PyTorchJob {_name(job)} is suspended."
        if is_true(job, "Running"):
            self._set(job, "Running", message, "False", "Suspended")
        self._set(job, "Suspended", message)
        job["status"].pop("replicaStatuses", None)
        self._write(job)

    def _clean_up(self, job, policy, pods):
        """Delete the pods of a finished job by its policy, and finally the job."""
        for pod in pods:
            clean = policy.get("cleanPodPolicy", "None")
            active = pod["status"]["phase"] in _ACTIVE
            if clean == "All" or (clean == "Running" and active):
                self._delete_replica(pod)
        if "ttlSecondsAfterFinished" not in policy:
            return None
        left = policy["ttlSecondsAfterFinished"] - seconds_since(job["status"]["completionTime"])
        if left <= 0:
            self.server.delete("PyTorchJob", _name(job), job["metadata"]["namespace"])
        return max(left, 0.0)

    def _create_replica(self, job, type_, index, replica, name):
        namespace = job["metadata"]["namespace"]
        port = self._ports.setdefault(job["metadata"]["uid"], port_of(job))
        labels = self._labels(job, type_, index)
        own = {"name": name, "labels": labels, "ownerReferences": [owner_of(job)]}
        service = {
            "metadata": own,
            "spec": {
                "clusterIP": "None",
                "selector": labels,
                "ports": [{"name": "pytorchjob-port", "port": port, "targetPort": port}],
            },
        }
        if self.server.find("Service", name, namespace) is None:
            self.server.create("Service", service, namespace)
        pod = self._pod(job, type_, index, replica, port)
        pod["metadata"] |= own | {"labels": {**pod["metadata"].get("labels", {}), **labels}}
        try:
            self.server.create("Pod", pod, namespace)
        except ApiError as error:
            self.record(job, "Warning", "FailedCreatePod", f"Error creating: {error}")
            raise

    def _labels(self, job, type_, index):
        labels = {
            f"{_LABEL}/job-name": _name(job),
            f"{_LABEL}/operator-name": self.name,
            f"{_LABEL}/replica-type": type_.lower(),
            f"{_LABEL}/replica-index": str(index),
        }
        leads = type_ == "Master" or ("Master" not in _replicas_of(job) and index == 0)
        return labels | ({f"{_LABEL}/job-role": "master"} if leads else {})

    def _pod(self, job, type_, index, replica, port):
        """Return a replica's pod, without its name, labels and owner."""
        pod = {"metadata": {}} | deepcopy(replica["template"])
        policy = replica.get("restartPolicy", "OnFailure")
        pod["spec"]["restartPolicy"] = "Never" if policy == "ExitCode" else policy
        environment = environment_of(job, type_, index, port)
        for container in pod["spec"]["containers"]:
            extra = [{"name": key, "value": value} for key, value in environment.items()]
            container["env"] = [*container.get("env", []), *extra]
        if type_ == "Worker" and "Master" in _replicas_of(job):
            # Upstream's looks the master's address up; here the kubelet does, before any start.
            waits = {"name": "init-pytorch", "image": INIT_IMAGE, "command": ["sh", "-c", ":"]}
            waits |= {"securityContext": self._init_security} if self._init_security else {}
            pod["spec"]["initContainers"] = [*pod["spec"].get("initContainers", []), waits]
        return pod

    def _delete_replica(self, pod):
        namespace = pod["metadata"]["namespace"]
        if "deletionTimestamp" not in pod["metadata"]:
            self.server.delete("Pod", _name(pod), namespace)
        if self.server.find("Service", _name(pod), namespace):
            self.server.delete("Service", _name(pod), namespace)

    def _owned(self, job, kind):
        found = self.server.list(
            *(kind, f"{_LABEL}/job-name={_name(job)}"), namespace=job["metadata"]["namespace"]
        )
        return [each for each in found if is_controlled_by(each, job)]

    def _write(self, job):
        self.server.update(
            *("PyTorchJob", _name(job), lambda obj: obj.update(status=job["status"])),
            status=True,
            namespace=job["metadata"]["namespace"],
        )


def _name(obj):
    return obj["metadata"]["name"]


def _replicas_of(job):
    return job["spec"]["pytorchReplicaSpecs"]


def _over_limit(job, policy, pods):
    """Return why a job may not continue, or an empty text."""
    if "backoffLimit" in policy:
        restarts = sum(
            status["restartCount"]
            for pod in pods
            if pod["status"]["phase"] == "Running" and pod["spec"]["restartPolicy"] != "Never"
            for name in ("initContainerStatuses", "containerStatuses")
            for status in pod["status"].get(name, [])
        )
        if restarts >= max(1, policy["backoffLimit"]):
            return "has reached the specified backoff limit"
    deadline = policy.get("activeDeadlineSeconds")
    if deadline is not None and seconds_since(job["status"]["startTime"]) >= deadline:
        return "was active longer than specified deadline"
    return ""


def _exit_code(pod):
    for status in pod["status"].get("containerStatuses", []):
        if status["name"] == "pytorch" and "terminated" in status["state"]:
            return status["state"]["terminated"]["exitCode"]
    return 0


def _count(pod, counts):
    phase = pod["status"]["phase"]
    if phase == "Running":
        counts["failed" if "deletionTimestamp" in pod["metadata"] else "active"] += 1
    elif phase in ("Succeeded", "Failed"):
        counts[phase.lower()] += 1
