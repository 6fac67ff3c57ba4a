"""Where models are put into service: the TorchServe of this machine, or one in a cluster."""

from pathlib import Path

from polarmask_components.models.registry import Facts, Registry
from polarmask_components.serving.local_server import Deployment

CLUSTER = "kubernetes://"


def deploy_to(
    target: str,
    model: Path,
    *,
    facts: Facts,
    name: str,
    registry: Registry,
    expected: str | None,
    image: bytes,
) -> Deployment:
    """Serve a model folder and promote it, or leave everything as it was.

    Args:
        target: kubernetes://NAMESPACE/NAME of a Deployment and its Service, or the folder of the
            TorchServe of this machine, which is started if none runs there.
        model: Folder of the candidate.
        facts: For the registry.
        name: Of the model, in URLs.
        registry: Holds the champion.
        expected: Version of the champion that the candidate was compared with, or None.
        image: JPEG or PNG the candidate has to answer.

    Raises:
        ComponentError: See `deployment.deploy` and `deployment_kubernetes.deploy_to_cluster`.
        ServingError: Likewise.
    """
    if target.startswith(CLUSTER):
        from polarmask_components.serving.deployment_kubernetes import deploy_to_cluster

        return deploy_to_cluster(
            model,
            facts=facts,
            name=name,
            target=target,
            registry=registry,
            expected=expected,
            image=image,
        )
    from polarmask_components.serving.deployment import deploy

    return deploy(
        model,
        facts=facts,
        name=name,
        target=Path(target),
        registry=registry,
        expected=expected,
        image=image,
    )
