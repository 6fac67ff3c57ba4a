"""What a run on a cluster needs, checked in seconds; all problems are reported at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kubernetes.client import (
    ApiClient,
    ApisApi,
    AppsV1Api,
    CoreV1Api,
)
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity

from polarmask_components.checks.bucket_check import problems_of_bucket
from polarmask_components.checks.cluster_access import (
    CANDIDATE_ACCESS,
    DEADLINE_SECONDS,
    DEPLOYMENT_ACCESS,
    NAMESPACE_ACCESS,
    NODES_ACCESS,
    OWN_POD_ACCESS,
    QUOTA_ACCESS,
    TRAFFIC_ACCESS,
    Access,
    is_allowed,
    missing_access,
    training_access,
)
from polarmask_components.checks.image_reference import problem_of_image
from polarmask_components.checks.job_kind import problems_of_kind
from polarmask_components.checks.planned_run import PlannedRun
from polarmask_components.cluster.address import CLUSTER, split_target
from polarmask_components.cluster.commands import (
    OWN_POD_ROLE,
    PIPELINE_ROLE,
    TRIAL_ROLE,
    how_to_make_secret,
)
from polarmask_components.cluster.connection import call_api, connect, own_namespace, refusal_of
from polarmask_components.errors import ComponentError, PreflightError, StorageError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.parameters.train_on import AUTO, PYTORCHJOB
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.provenance.data_version import check_reachable


class Note(str):
    """What could not be checked, or does not have to stop the run."""


@dataclass
class Findings:
    """What checks found, a line each."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, check: Callable[[], Iterable[str]]) -> None:
        """Run a check; what it yields or raises is a problem, unless it is a Note."""
        try:
            for line in check():
                kind = self.notes if isinstance(line, Note) else self.problems
                kind.append(_one_line(line))
        except ComponentError as error:
            self.problems.append(_one_line(str(error)))
        except ApiException as error:
            self.problems.append(f"the Kubernetes API refused: {refusal_of(error)}")


def check_cluster(run: PlannedRun) -> list[str]:
    """Check all that a run needs.

    Returns:
        Notes, for people.

    Raises:
        PreflightError: Some of it is missing; one line each.
    """
    request, findings = run.training_request, Findings()
    findings.add(partial(_check_data, run.repository, run.revision))
    findings.add(run.problems_of_places)
    findings.add(partial(_check_storage, run.registry, run.storage_secret))
    if request.on_cluster:
        findings.add(partial(_check_storage, request.storage, run.storage_secret))
    if request.on_cluster or run.deploys_to_cluster:
        _check_kubernetes(run, findings)
    if findings.problems:
        lines = "".join(f"\n- {problem}" for problem in findings.problems)
        raise PreflightError(f"this run would be stopped by:{lines}")
    return findings.notes


def _check_data(repository: str, revision: str) -> Iterator[str]:
    check_reachable(repository, revision)
    yield from ()


def _check_storage(uri: str, secret: str) -> Iterator[str]:
    if not uri.startswith("s3://"):
        return
    try:
        yield from problems_of_bucket(uri)
    except StorageError as error:
        namespace = own_namespace()
        raise StorageError(
            f"{error}; steps have address and keys from the Secret {secret} (storage_secret) of "
            f"namespace {namespace}: {how_to_make_secret(secret, namespace)}"
        ) from error


def _check_kubernetes(run: PlannedRun, findings: Findings) -> None:
    try:
        api = connect()
        call_api(ApisApi(api).get_api_versions, deadline_seconds=DEADLINE_SECONDS)
    except ComponentError as error:  # further calls would fail, too
        findings.problems.append(_one_line(str(error)))
        return
    if run.training_request.on_cluster:
        _check_training(api, run.training_request, findings)
    findings.add(partial(_check_gpus, api, run))
    if run.deploys_to_cluster:
        findings.add(partial(_check_deployment, api, run.target))
        if run.trial:
            findings.add(partial(_check_trial, api, run.target))


def _check_training(api: ApiClient, request: TrainingRequest, findings: Findings) -> None:
    job = request.job
    nodes = request.min_nodes or request.nodes
    namespace = job.namespace or own_namespace()
    own = own_namespace()
    role = PIPELINE_ROLE if own == namespace else OWN_POD_ROLE
    findings.add(partial(missing_access, api, [OWN_POD_ACCESS], namespace=own, role=role))
    if request.on != AUTO:  # else no kind fits
        access = training_access(request.on)
        findings.add(partial(missing_access, api, access, namespace=namespace))
    findings.add(partial(problems_of_kind, api, request, namespace))
    findings.add(partial(_check_image, job))
    findings.add(partial(_check_quota, api, job, nodes, namespace))
    # Workers of such a job wait for its master.
    if request.on == PYTORCHJOB and request.nodes > 1 and not request.is_elastic:
        findings.add(partial(_check_pod_security, api, namespace))


def _check_image(job: JobSettings) -> Iterator[str]:
    if job.image:  # else the image of this step
        problem = problem_of_image(job.image)
        if problem:
            yield f"train_job.image: {problem}"


@dataclass(frozen=True)
class _GpuPods:
    """Pods that have to be there at the same time."""

    who: str
    pods: int
    gpus: int
    """Of each."""
    labels: Mapping[str, str]
    """Of their nodes."""
    change: str
    """Parameters that say so."""


def _gpu_pods(run: PlannedRun) -> Iterator[_GpuPods]:
    request, steps = run.training_request, run.resources
    job = request.job
    if request.on_cluster and job.gpus_per_node:
        nodes = request.min_nodes or request.nodes
        change = "train_job or train_nodes"
        yield _GpuPods("training", nodes, job.gpus_per_node, job.node_selector, change)
    if steps.eval_gpus:
        yield _GpuPods("evaluation", 1, steps.eval_gpus, {}, "eval_gpus")
    if steps.label_gpu_text:
        yield _GpuPods("a label pod", 1, int(steps.label_gpu_text), {}, "label_device")


def _check_gpus(api: ApiClient, run: PlannedRun) -> Iterator[str]:
    resource, wanted = run.training_request.job.gpu_resource, list(_gpu_pods(run))
    if not wanted:
        return
    if not is_allowed(api, NODES_ACCESS, namespace=""):
        yield Note(f"whether nodes have {resource} is not known: no right to list nodes")
        return
    listed = call_api(CoreV1Api(api).list_node, deadline_seconds=DEADLINE_SECONDS)
    for each in wanted:
        room = sum(
            int(node.status.allocatable.get(resource, 0)) // each.gpus
            for node in listed.items
            if not node.spec.unschedulable
            and each.labels.items() <= (node.metadata.labels or {}).items()
        )
        if room < each.pods:
            selected = f" with labels {dict(each.labels)}" if each.labels else ""
            yield (
                f"{each.who} wants {each.pods} pods with {each.gpus} {resource} each, and "
                f"the nodes{selected} hold {room}; change {each.change}, add nodes, or, "
                "where nodes come on demand, take the right to list nodes from this service account"
            )


def _check_quota(api: ApiClient, job: JobSettings, nodes: int, namespace: str) -> Iterator[str]:
    if not is_allowed(api, QUOTA_ACCESS, namespace=namespace):
        yield Note(f"quotas of namespace {namespace} are not known: no right to list them")
        return
    listed = call_api(
        CoreV1Api(api).list_namespaced_resource_quota,
        namespace,
        deadline_seconds=DEADLINE_SECONDS,
    )
    for quota in listed.items:
        if not (quota.spec.scopes or quota.spec.scope_selector):
            yield from _problems_of_quota(quota, job, nodes)


def _problems_of_quota(quota: Any, job: JobSettings, nodes: int) -> Iterator[str]:  # noqa: ANN401  # V1ResourceQuota has no types
    where = f"quota {quota.metadata.name} of namespace {quota.metadata.namespace}"
    used = (quota.status and quota.status.used) or {}
    for name, amount in _wanted(job).items():
        hard = (quota.spec.hard or {}).get(name)
        if hard is None:
            continue
        wanted = nodes * parse_quantity(amount)
        if wanted > parse_quantity(hard):
            yield (
                f"{where} allows {name} of {hard}, and training wants {nodes} x {amount}; change "
                "train_job or train_nodes, or have the quota raised"
            )
        elif wanted > parse_quantity(hard) - parse_quantity(used.get(name, "0")):
            yield Note(
                f"{where} has {used[name]} of {hard} {name} in use; training waits until "
                f"there is room for {nodes} x {amount}"
            )


def _check_pod_security(api: ApiClient, namespace: str) -> Iterator[str]:
    """Note a namespace that may refuse the operator's own init container, which we can't see."""
    if not is_allowed(api, NAMESPACE_ACCESS, namespace=namespace, name=namespace):
        return
    found = call_api(CoreV1Api(api).read_namespace, namespace, deadline_seconds=DEADLINE_SECONDS)
    if (found.metadata.labels or {}).get("pod-security.kubernetes.io/enforce") == "restricted":
        yield Note(
            f"namespace {namespace} admits restricted pods only: the training operator needs a "
            "--pytorch-init-container-template-file, or its workers never start; with "
            "train_min_nodes equal to train_nodes no such container is needed"
        )


def _wanted(job: JobSettings) -> dict[str, str]:
    """Return what one pod wants, by the names that quotas use."""
    wanted = {"pods": "1", "count/pods": "1"}
    for name, amount in job.amounts().items():
        wanted |= {name: amount, f"requests.{name}": amount, f"limits.{name}": amount}
    return wanted


def _check_deployment(api: ApiClient, target: str) -> Iterator[str]:
    namespace, name = split_target(target)
    if name:
        kinds = ("Deployment", "Service")
        yield from _check_objects(api, DEPLOYMENT_ACCESS, namespace, name, kinds)


def _check_trial(api: ApiClient, target: str) -> Iterator[str]:
    namespace, name = split_target(target)
    for access, of, kinds in (
        (CANDIDATE_ACCESS, f"{name}-candidate", ("Deployment", "Service")),
        (TRAFFIC_ACCESS, f"{name}-traffic", ("ConfigMap",)),
    ):
        for line in _check_objects(api, access, namespace, of, kinds, TRIAL_ROLE):
            yield f"deploy_trial: {line}; apply k8s/components/trial"


def _check_objects(
    api: ApiClient,
    access: Iterable[Access],
    namespace: str,
    name: str,
    kinds: Iterable[str],
    role: str = PIPELINE_ROLE,
) -> Iterator[str]:
    """Yield what is missing of objects of one name, and of the rights to use them."""
    lacks = list(missing_access(api, access, namespace=namespace, name=name, role=role))
    yield from lacks
    reads = {
        "Deployment": AppsV1Api(api).read_namespaced_deployment,
        "Service": CoreV1Api(api).read_namespaced_service,
        "ConfigMap": CoreV1Api(api).read_namespaced_config_map,
    }
    for kind in kinds:
        if any(f"{kind.lower()}s" in line for line in lacks):
            continue
        try:
            call_api(reads[kind], name, namespace, deadline_seconds=DEADLINE_SECONDS)
        except ApiException as error:
            if error.status != 404:
                raise
            where = f"{CLUSTER}{namespace}/{name}"
            yield f"{where}: no {kind} {name} in namespace {namespace}; apply k8s/ there first"


def _one_line(text: str) -> str:
    return " ".join(text.split())
