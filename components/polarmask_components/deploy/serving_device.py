"""The device that serves: engines are measured on its kind."""

from typing import NamedTuple

from polarmask_components.cluster.address import CLUSTER
from polarmask_components.deploy.cluster_state import Object


class ServingDevice(NamedTuple):
    """What answers requests at a target."""

    device: str
    """cpu or cuda; empty: CUDA where the machine has it."""
    gpu: str
    """Resource that the server's pods ask for, such as nvidia.com/gpu; empty for none."""


def serving_device(target: str) -> ServingDevice:
    """Return what serves at a target. On this machine TorchServe takes a GPU where there is one.

    Raises:
        RollOutError, ClusterError: The target is no Deployment that can be read.
    """
    if not target.startswith(CLUSTER):
        return ServingDevice("", "")
    # Imports the Kubernetes client, which takes a second: too long for runs without a cluster.
    from polarmask_components.cluster.connection import connect
    from polarmask_components.deploy.cluster_deployment import ClusterDeployment

    gpu = gpu_of(ClusterDeployment.from_uri(connect(), target).read())
    return ServingDevice("cuda" if gpu else "cpu", gpu)


def gpu_of(deployment: Object) -> str:
    """Return the GPU resource that a Deployment's pods are limited to, empty for none."""
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        for name, amount in (container.get("resources", {}).get("limits") or {}).items():
            is_gpu = "/" in name and ("gpu" in name or "/mig-" in name)
            if is_gpu and str(amount) != "0":
                return str(name)
    return ""
