"""Fields of Kubeflow Trainer's objects: names and types, as in its CRDs (v1alpha1, release 2.2).

A type, a tuple of values, the fields one level down, or a list of such. `dict` and `list` are not
looked into here: fields of core objects.
"""

_METADATA = {"labels": dict, "annotations": dict}
_CONTAINER = {"name": str, "env": list, "volumeMounts": list, "securityContext": dict}
_POD_PATCH = {
    "serviceAccountName": str,
    "volumes": list,
    "initContainers": [_CONTAINER],
    "containers": [_CONTAINER],
    "imagePullSecrets": list,
    "securityContext": dict,
    "nodeSelector": dict,
    "affinity": dict,
    "tolerations": list,
    "schedulingGates": list,
}
_POD_TEMPLATE_PATCH = {"metadata": _METADATA, "spec": _POD_PATCH}
_JOB_PATCH = {"metadata": _METADATA, "spec": {"template": _POD_TEMPLATE_PATCH}}
_JOBSET_PATCH = {"replicatedJobs": [{"name": str, "template": _JOB_PATCH}]}

TRAIN_JOB = {
    "runtimeRef": {"name": str, "apiGroup": str, "kind": ("TrainingRuntime",)},
    "initializer": dict,
    "trainer": {
        "image": str,
        "command": list,
        "args": list,
        "env": [{"name": str, "value": str, "valueFrom": dict}],
        "numNodes": int,
        "resourcesPerNode": {"requests": dict, "limits": dict, "claims": list},
        "numProcPerNode": int,
    },
    "runtimePatches": [
        {
            "manager": str,
            "time": str,
            "trainingRuntimeSpec": {"template": {"metadata": _METADATA, "spec": _JOBSET_PATCH}},
        }
    ],
    "suspend": bool,
    "activeDeadlineSeconds": int,
    "managedBy": str,
}
"""spec of a TrainJob."""

_JOB = {
    "metadata": _METADATA,
    "spec": {
        **dict.fromkeys(("parallelism", "completions", "backoffLimit"), int),
        **dict.fromkeys(("activeDeadlineSeconds", "ttlSecondsAfterFinished"), int),
        "completionMode": ("Indexed", "NonIndexed"),
        "template": dict,
    },
}
_JOBSET = {
    "replicatedJobs": [{"name": str, "replicas": int, "groupName": str, "template": _JOB}],
    "network": dict,
    "successPolicy": dict,
    "failurePolicy": {"maxRestarts": int, "restartStrategy": str, "rules": list},
    "startupPolicy": dict,
    "ttlSecondsAfterFinished": int,
    "suspend": bool,
}
RUNTIME = {
    "mlPolicy": {"numNodes": int, "torch": {}, "mpi": dict, "jax": dict, "flux": dict},
    "podGroupPolicy": dict,
    "template": {"metadata": _METADATA, "spec": _JOBSET},
}
"""spec of a TrainingRuntime; since 2.2 the policy of torch has no fields."""
