"""What to type where a cluster lacks something: a Role of `k8s/` that gives a right, a Secret."""

import re
import shlex

PIPELINE_ROLE, TRIAL_ROLE = "polarmask-pipeline", "polarmask-trial"
"""Of k8s/base/pipeline and k8s/components/trial, in the namespace of jobs and server."""
OWN_POD_ROLE = "polarmask-own-pod"
"""In the namespace of the steps, where it is another one; the command makes it."""
_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):(.+)")
_REFUSAL = re.compile(r'User "([^"]+)" cannot .* in the namespace "([^"]+)"')


def how_to_bind(role: str, *, namespace: str, user: str) -> str:
    """Return what to type so that a user has a Role.

    Args:
        role: One of the above.
        namespace: Where the right is needed.
        user: As Kubernetes writes it: `system:serviceaccount:NAMESPACE:NAME` for an account.
    """
    kubectl = f"kubectl -n {namespace} create"
    made = ""
    if role == OWN_POD_ROLE:
        made = f"{kubectl} role {role} --verb get --resource pods && "
    found = _ACCOUNT.fullmatch(user)
    name, subject = user, f"--user {shlex.quote(user)}"
    if found:
        name, subject = "-".join(found.groups()), f"--serviceaccount {':'.join(found.groups())}"
    name = re.sub("[^a-z0-9-]+", "-", name.lower())
    return f"{made}{kubectl} rolebinding {role}-{name} --role {role} {subject}"


def how_to_allow(refusal: str) -> str:
    """Return what to type after the API's refusal of a user in a namespace; "" for others."""
    found = _REFUSAL.search(refusal)
    if not found:
        return ""
    is_trial = re.search('-(candidate|traffic)"', refusal)
    role = TRIAL_ROLE if is_trial else PIPELINE_ROLE
    command = how_to_bind(role, namespace=found[2], user=found[1])
    return f"bind the Role {role}: {command}"


def how_to_make_secret(secret: str, namespace: str) -> str:
    """Return what to type so that a namespace has a Secret with address and keys of storage."""
    return f"kubectl -n {namespace} create secret generic {secret} --from-env-file=read-write.env"
