"""Admission of pods: their service account exists, Pod Security allows them, the quota suffices.

And of TrainJobs: their runtime exists.
"""

from kube.errors import ApiError
from kube.pod_security import enforces_restricted, violations
from kube.quantity import quantity, requests_of


def admit(store, pod, namespace):
    """Refuse a new pod (403) as the admission plugins of the API server do."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    account = spec.get("serviceAccountName", "default")
    if not store.list("ServiceAccount", namespace, fields=f"metadata.name={account}"):
        why = f"error looking up service account {namespace}/{account}: not found"
        raise ApiError(403, "Forbidden", f'pods "{name}" is forbidden: {why}')
    found = violations(spec) if enforces_restricted(store.get("Namespace", namespace, "")) else []
    if found:
        why = f'violates PodSecurity "restricted:latest": {", ".join(found)}'
        raise ApiError(403, "Forbidden", f'pods "{name}" is forbidden: {why}')
    for quota in store.list("ResourceQuota", namespace):
        _fit(store, quota, name, spec, namespace)


def admit_trainjob(store, job, namespace):
    """Refuse a new TrainJob (403) as the webhook of Kubeflow Trainer does."""
    name = job["spec"]["runtimeRef"]["name"]
    if not store.list("TrainingRuntime", namespace, fields=f"metadata.name={name}"):
        why = (
            'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
            f'spec.runtimeRef: Invalid value: TrainingRuntime.trainer.kubeflow.org "{name}" not '
            "found: specified trainingRuntime must be created before the TrainJob is created"
        )
        raise ApiError(403, "Forbidden", why)


def _fit(store, quota, name, spec, namespace):
    asked = _counted(spec)
    used = {}
    for pod in store.list("Pod", namespace):
        if pod["status"]["phase"] not in ("Succeeded", "Failed"):
            for resource, amount in _counted(pod["spec"]).items():
                used[resource] = used.get(resource, 0) + amount
    for resource, hard in quota["spec"].get("hard", {}).items():
        if used.get(resource, 0) + asked.get(resource, 0) > quantity(hard):
            why = (
                f"exceeded quota: {quota['metadata']['name']}, requested: "
                f"{resource}={asked[resource]:g}, used: {resource}={used.get(resource, 0):g}, "
                f"limited: {resource}={hard}"
            )
            raise ApiError(403, "Forbidden", f'pods "{name}" is forbidden: {why}')


def _counted(spec):
    """Return what a quota counts of a pod."""
    requests = requests_of(spec)
    return {"pods": 1, **requests, **{f"requests.{key}": each for key, each in requests.items()}}
