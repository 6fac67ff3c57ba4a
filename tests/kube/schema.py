"""Validation: unknown fields, missing fields, and rules beyond the schema."""

import re

import kubernetes_validate

from kube.trainer_fields import RUNTIME, TRAIN_JOB

_VERSION = "1.32"
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # DNS-1035
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # DNS-1123
_CORE = {
    *("Pod", "Service", "ConfigMap", "Secret", "ServiceAccount", "PersistentVolumeClaim"),
    *("Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
    *("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ResourceQuota"),
}
# Fields of a PyTorchJob's spec: a type, a tuple of values, or the fields one level down.
_JOB = {
    "nprocPerNode": str,
    "runPolicy": {
        "cleanPodPolicy": ("All", "Running", "None"),
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "ttlSecondsAfterFinished": int,
        "suspend": bool,
        "managedBy": str,
        "schedulingPolicy": dict,
    },
    "elasticPolicy": {
        **dict.fromkeys(("minReplicas", "maxReplicas", "maxRestarts", "nProcPerNode"), int),
        **dict.fromkeys(("rdzvBackend", "rdzvHost", "rdzvId"), str),
        "rdzvPort": int,
        "rdzvConf": list,
        "metrics": list,
        "standalone": bool,
    },
    "pytorchReplicaSpecs": dict,
}
_REPLICA = {
    "replicas": int,
    "restartPolicy": ("Always", "OnFailure", "Never", "ExitCode"),
    "template": dict,
}


def problems_of(obj, old=None):
    """Return what is wrong with an object as sentences; `old` is the state that it replaces."""
    kind, name = obj["kind"], obj["metadata"]["name"]
    if old is not None and old.get("spec") == obj.get("spec"):
        return []
    if not kind.endswith(("Role", "Binding")) and (not _NAME.fullmatch(name) or len(name) > 253):
        return [f"metadata.name: Invalid value: {name!r}: must be a DNS-1123 subdomain"]
    problems = _against_schema(obj) if kind in _CORE else []
    more = {
        "PyTorchJob": _problems_of_job,
        "TrainJob": _problems_of_trainjob,
        "TrainingRuntime": _problems_of_runtime,
        "Deployment": _problems_of_deployment,
        "Pod": _problems_of_pod,
    }.get(kind)
    return problems or (more(obj, old) if more else [])


def _against_schema(obj):
    bare = {name: value for name, value in obj.items() if name != "status"}
    try:
        kubernetes_validate.validate(bare, _VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path)) or 'object'}: {error.message}"]
    return []


def _problems_of_pod(pod, old):
    if old is None:
        names = [each["name"] for each in _containers(pod["spec"])]
        images = [each["name"] for each in _containers(pod["spec"]) if not each.get("image")]
        mounts = {
            mount["name"]
            for each in _containers(pod["spec"])
            for mount in each.get("volumeMounts", [])
        }
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        return [
            *([f"spec.containers: Duplicate value: {names}"] if len({*names}) < len(names) else []),
            *(f"spec.containers[{name}].image: Required value" for name in images),
            *(f"spec.volumeMounts: Not found: {name!r}" for name in sorted(mounts - volumes)),
        ]
    return [
        f"spec.{name}: Forbidden: pod updates may not change fields other than `image`"
        for name in old["spec"].keys() | pod["spec"].keys()
        if name not in ("containers", "nodeName", "tolerations", "activeDeadlineSeconds")
        and old["spec"].get(name) != pod["spec"].get(name)
    ]


def _containers(spec):
    return [*spec.get("initContainers", []), *spec["containers"]]


def _problems_of_deployment(deployment, old):
    spec = deployment["spec"]
    wanted = spec["selector"].get("matchLabels", {})
    labels = spec["template"].get("metadata", {}).get("labels") or {}
    if not wanted or not wanted.items() <= labels.items():
        return ["spec.template.metadata.labels: Invalid value: selector does not match template"]
    if old is not None and old["spec"]["selector"] != spec["selector"]:
        return ["spec.selector: Invalid value: field is immutable"]
    return _problems_of_pod({"spec": spec["template"]["spec"]}, None)


def _problems_of_job(job, _old):
    """Check a PyTorchJob: its schema, its pods, and what the operator's webhook refuses."""
    spec, name = job.get("spec") or {}, job["metadata"]["name"]
    replicas = spec.get("pytorchReplicaSpecs")
    if not isinstance(replicas, dict) or not replicas:
        return ["spec.pytorchReplicaSpecs: Required value"]
    problems = [*_problems_of_fields(spec, _JOB, "spec")]
    if not _LABEL.fullmatch(name) or len(f"{name}-worker-99") > 63:
        problems.append(
            f"metadata.name: Invalid value: {name!r}: must be a DNS-1035 label with room for "
            f"-worker-99"
        )
    if "elasticPolicy" in spec and "Worker" not in replicas:
        problems.append("spec.pytorchReplicaSpecs[Worker]: must be configured for elasticPolicy")
    if "nprocPerNode" in spec and "nProcPerNode" in spec.get("elasticPolicy", {}):
        problems.append("spec.elasticPolicy.nProcPerNode: must not be used with nprocPerNode")
    for type_, replica in replicas.items():
        where = f"spec.pytorchReplicaSpecs[{type_}]"
        problems += _problems_of_replica(type_, replica, where)
    return problems


def _problems_of_trainjob(job, old):
    """Check a TrainJob: the fields of its CRD, its names, and what may not change."""
    spec, name = job.get("spec") or {}, job["metadata"]["name"]
    problems = [*_problems_of_fields(spec, TRAIN_JOB, "spec")]
    if not _LABEL.fullmatch(name) or len(name) > 63:
        problems.append(f"metadata.name: Invalid value: {name!r}: must match RFC 1035 DNS label")
    if "runtimeRef" not in spec:
        problems.append("spec.runtimeRef: Required value")
    names = [each["name"] for each in spec.get("trainer", {}).get("env", [])]
    if len({*names}) < len(names):
        problems.append(f"spec.trainer.env: Duplicate value: {names}")
    for patch in spec.get("runtimePatches", []):
        if not re.fullmatch(r"[a-z0-9.-]+/[\w.-]+", patch.get("manager", "")):
            problems.append("spec.runtimePatches.manager: must be a domain-prefixed path")
    for fixed in ("runtimeRef", "trainer", "activeDeadlineSeconds"):
        if old is not None and old["spec"].get(fixed) != spec.get(fixed):
            problems.append(f"spec.{fixed}: Invalid value: field is immutable")
    return problems


def _problems_of_runtime(runtime, _old):
    """Check a TrainingRuntime: the fields of its CRD, and what Trainer's webhook refuses."""
    problems = [*_problems_of_fields(runtime.get("spec") or {}, RUNTIME, "spec")]
    for job in [] if problems else runtime["spec"]["template"]["spec"]["replicatedJobs"]:
        pod = job["template"]["spec"]["template"]
        if job.get("replicas", 1) != 1:
            problems.append("spec.template.spec.replicatedJobs.replicas: always must be 1")
        if "node" not in [each["name"] for each in pod["spec"]["containers"]]:
            problems.append("spec.template.spec.replicatedJobs: must contain the container node")
        problems += _against_schema({"apiVersion": "v1", "kind": "Pod", "metadata": {}, **pod})
    return problems


def _problems_of_fields(value, fields, where):
    if isinstance(fields, list):  # of objects with these fields
        for number, each in enumerate(value):
            yield from _problems_of_fields(each, fields[0], f"{where}[{number}]")
        return
    for name, given in value.items():
        wanted = fields.get(name)
        path = f"{where}.{name}"
        if wanted is None:
            yield f"{path}: unknown field"
        elif isinstance(wanted, dict | list) and isinstance(given, type(wanted)):
            yield from _problems_of_fields(given, wanted, path)
        elif isinstance(wanted, tuple) and given not in wanted:
            yield f"{path}: Unsupported value: {given!r}: supported values: {wanted}"
        elif isinstance(wanted, type | dict | list) and type(given) is not _type_of(wanted):
            yield f"{path}: must be of type {_type_of(wanted).__name__}: {given!r}"


def _type_of(wanted):
    return wanted if isinstance(wanted, type) else type(wanted)


def _problems_of_replica(type_, replica, where):
    problems = list(_problems_of_fields(replica, _REPLICA, where))
    number = replica.get("replicas", 1)
    if type_ not in ("Master", "Worker"):
        problems.append(f"{where}: Unsupported value: supported values: Master, Worker")
    if number < 1 or (type_ == "Master" and number != 1):
        problems.append(f"{where}.replicas: Invalid value: {number}")
    template = replica.get("template") or {}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, **template}
    containers = template.get("spec", {}).get("containers") or []
    if "pytorch" not in [each.get("name") for each in containers]:
        problems.append(f"{where}.template.spec.containers: one must be named pytorch")
        return problems
    return problems + [f"{where}.template.{each}" for each in _pod_problems(pod)]


def _pod_problems(pod):
    return _against_schema(pod) or _problems_of_pod(pod, None)
