"""Addresses of Deployments, and the namespaces that follow from them."""

CLUSTER = "kubernetes://"
"""What a target in a cluster begins with; NAMESPACE/NAME follow. Any other is a folder."""


def split_target(target: str) -> tuple[str, str]:
    """Return namespace and name of `kubernetes://NAMESPACE/NAME`; both "" if it is none."""
    namespace, _, name = target.removeprefix(CLUSTER).partition("/")
    is_whole = target.startswith(CLUSTER) and namespace and name and "/" not in name
    return (namespace, name) if is_whole else ("", "")


def job_namespace(given: str, target: str) -> str:
    """Return the namespace of a training job: the given one, else that of the run's server.

    Both empty: "", for that of the step itself.
    """
    return given or split_target(target)[0]
