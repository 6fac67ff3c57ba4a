"""What the pipeline's service account has to be allowed in a cluster."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from kubernetes.client import (
    ApiClient,
    AuthenticationV1Api,
    AuthorizationV1Api,
    V1ResourceAttributes,
    V1SelfSubjectAccessReview,
    V1SelfSubjectAccessReviewSpec,
    V1SelfSubjectReview,
)

from polarmask_components.cluster.commands import PIPELINE_ROLE, how_to_bind
from polarmask_components.cluster.connection import call_api
from polarmask_components.parameters.train_on import TRAINJOB
from polarmask_components.training.job_identity import JOB_RESOURCES

DEADLINE_SECONDS = 10.0
"""Of a check: preflight has to end in seconds."""


@dataclass(frozen=True)
class Access:
    """One verb on one kind of resource."""

    verb: str
    resource: str
    """Plural, with the subresource if any: `pods/log`."""
    group: str = ""

    @property
    def kind(self) -> str:
        """The resource with its group, as Kubernetes writes it."""
        return f"{self.resource}.{self.group}" if self.group else self.resource


_WATCHING = (Access("list", "pods"), Access("get", "pods/log"))
_TRAINING = (*_WATCHING, Access("list", "events"))
RUNTIME_ACCESS = Access("get", "trainingruntimes", JOB_RESOURCES[TRAINJOB].group)
"""Of a TrainJob."""
DEPLOYMENT_ACCESS = (
    *(Access(verb, "deployments", "apps") for verb in ("get", "patch")),
    Access("get", "services"),
    *_WATCHING,
)
CANDIDATE_ACCESS = (
    *(Access(v, "deployments", "apps") for v in ("get", "patch")),
    Access("get", "services"),
)
TRAFFIC_ACCESS = tuple(Access(verb, "configmaps") for verb in ("get", "patch"))
"""For a trial on live requests."""
OWN_POD_ACCESS = Access("get", "pods")
"""In the namespace of the step itself: to find the owner of the job."""
NODES_ACCESS = Access("list", "nodes")
QUOTA_ACCESS = Access("list", "resourcequotas")
NAMESPACE_ACCESS = Access("get", "namespaces")
"""Preflight finds more with these; runs do not need them."""


def training_access(on: str) -> tuple[Access, ...]:
    """Return what a training job needs.

    Args:
        on: Kind of the job, as in `train_on`.
    """
    resource = JOB_RESOURCES[on]
    return (
        *(Access(verb, resource.plural, resource.group) for verb in ("create", "get", "delete")),
        *_TRAINING,
        *((RUNTIME_ACCESS,) if on == TRAINJOB else ()),
    )


def is_allowed(api: ApiClient, access: Access, *, namespace: str, name: str = "") -> bool:
    """Return whether the cluster lets us do this.

    Args:
        api: Client, with our credentials.
        access: Verb and resource.
        namespace: Empty for resources without one.
        name: Of one object; empty for all.

    Raises:
        ClusterError: The cluster can't be reached.
    """
    resource, _, subresource = access.resource.partition("/")
    attributes = V1ResourceAttributes(
        verb=access.verb,
        group=access.group,
        resource=resource,
        subresource=subresource or None,
        namespace=namespace or None,
        name=name or None,
    )
    review = V1SelfSubjectAccessReview(
        spec=V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
    )
    answer = call_api(
        AuthorizationV1Api(api).create_self_subject_access_review,
        review,
        deadline_seconds=DEADLINE_SECONDS,
    )
    return bool(answer.status.allowed)


def missing_access(
    api: ApiClient,
    needed: Iterable[Access],
    *,
    namespace: str,
    name: str = "",
    role: str = PIPELINE_ROLE,
) -> Iterator[str]:
    """Yield a line if we may not do all that is needed, with the command that allows it.

    Args:
        api: Client, with our credentials.
        needed: Rights.
        namespace: Where.
        name: Of one object; empty for all.
        role: That has these rights.
    """
    missing = [each for each in needed if not is_allowed(api, each, namespace=namespace, name=name)]
    if missing:
        of_kinds = groupby(missing, key=lambda each: each.kind)
        rights = "; ".join(f"{', '.join(a.verb for a in group)} {kind}" for kind, group in of_kinds)
        user = _own_name(api)
        yield (
            f"namespace {namespace}: no right to {rights} for {user}; bind the Role {role}: "
            f"{how_to_bind(role, namespace=namespace, user=user)}"
        )


def _own_name(api: ApiClient) -> str:
    """Return who we are, as Kubernetes writes it."""
    answer = call_api(
        AuthenticationV1Api(api).create_self_subject_review,
        V1SelfSubjectReview(),
        deadline_seconds=DEADLINE_SECONDS,
    )
    return str(answer.status.user_info.username)
