"""Where models are put into service: the TorchServe of this machine, or one in a cluster."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from polarmask.errors import ConfigError
from polarmask_components.deploy.local_server import Deployment
from polarmask_components.deploy.serving_state import CLUSTER
from polarmask_components.deploy.trial_settings import TrialSettings, read_trial_settings
from polarmask_components.registry.registry import Facts, Registry


def read_trial(trial: Mapping[str, Any], target: str) -> TrialSettings | None:
    """Read how to try a new model on live requests; None: not at all.

    Raises:
        ConfigError: A setting that can't work, or a target without live requests.
    """
    settings = read_trial_settings(trial)
    if settings is not None and not target.startswith(CLUSTER):
        raise ConfigError(
            f"deploy_trial needs a cluster, and deploy_target is {target!r}; leave it empty"
        )
    return settings


def deploy_to(
    target: str,
    model: Path,
    *,
    facts: Facts,
    name: str,
    registry: Registry,
    expected: str | None,
    image: bytes,
    trial: Mapping[str, Any] = MappingProxyType({}),
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
        trial: Fields of `trial_settings.TrialSettings`, for a cluster; empty for none.

    Raises:
        ComponentError: See `deployment.deploy` and `deployment_kubernetes.deploy_to_cluster`.
        ServingError: Likewise.
        ConfigError: A trial that can't be.
    """
    settings = read_trial(trial, target)
    if target.startswith(CLUSTER):
        from polarmask_components.deploy.deployment_kubernetes import deploy_to_cluster

        return deploy_to_cluster(
            model,
            facts=facts,
            name=name,
            target=target,
            registry=registry,
            expected=expected,
            image=image,
            trial=settings,
        )
    from polarmask_components.deploy.deployment import deploy

    return deploy(
        model,
        facts=facts,
        name=name,
        target=Path(target),
        registry=registry,
        expected=expected,
        image=image,
    )
