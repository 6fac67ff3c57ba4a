"""Put a registered model into service and make it the champion, or leave everything as it was.

    check the target -> register the model -> prove that it answers -> promote it in the registry
    -> let it take over

The same on a cluster (`cluster_target`) and on this machine (`local_target`). Whatever fails, the
version that was served before answers again. The registry alone names the champion.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from polarmask.errors import PolarMaskError
from polarmask_components.cluster.address import CLUSTER
from polarmask_components.deploy.target import (
    Deployment,
    DeployTarget,
    ServedModel,
)
from polarmask_components.deploy.trial.settings import TrialSettings, read_trial
from polarmask_components.errors import ComponentError, ConflictError, RollOutError
from polarmask_components.registry.registry import ModelRecord, Registry
from polarmask_components.signals import end_run, on_stop_signal
from polarmask_serving.errors import ServingError

_log = logging.getLogger(__name__)


def deploy(
    register: Callable[[], ModelRecord],
    target: str,
    *,
    name: str,
    registry: Registry,
    expected: str | None,
    image: bytes,
    trial: Mapping[str, Any] = MappingProxyType({}),
) -> Deployment:
    """Register a model, serve and promote it.

    Args:
        register: Returns the record of the candidate. Called once it is known that the target can
            be used, so that nothing is packed or stored in vain.
        target: kubernetes://NAMESPACE/NAME of a Deployment and its Service, or a folder for the
            pod of this machine.
        name: Of the model, in URLs.
        registry: Holds the record and the champion.
        expected: Version of the champion that the candidate was compared with, or None.
        image: JPEG or PNG the candidate has to answer.
        trial: Fields of `TrialSettings`, for a cluster; empty for none.

    Raises:
        RollOutError: The model does not come up, answers nonsense, or a signal stopped the
            run; the message says what answers now.
        ConflictError: Another run promoted or rolled out meanwhile.
        ComponentError: Registry or cluster can't be used.
        ConfigError: A trial that can't be.
    """
    settings = read_trial(trial, target)
    with _open(target, name, settings) as place:
        place.prepare(registry)
        record = register()
        model = ServedModel.of(record, registry)
        try:
            with on_stop_signal(end_run):
                proof = place.prove(model, image)
                registry.keep_image(model.version, image)
                registry.promote(model.version, expected=expected)
        except BaseException as error:  # a signal, too, brings the old version back
            with on_stop_signal(lambda *_: _log.warning("busy putting back the old version")):
                outcome = place.go_back(_champion_of(registry))
                _keep_reason(registry, record, error)
            _raise_with(error, outcome)
        place.take_over()
        return Deployment(model.version, place.url, proof.answer, proof.trial)


@contextmanager
def _open(target: str, name: str, trial: TrialSettings | None) -> Iterator[DeployTarget]:
    if target.startswith(CLUSTER):
        from polarmask_components.deploy.cluster_target import ClusterTarget

        yield ClusterTarget(target, name=name, trial=trial)
        return
    from polarmask_components.deploy.local_target import LocalTarget, locked

    with locked(Path(target)):
        yield LocalTarget(Path(target), name=name)


def _champion_of(registry: Registry) -> str | None:
    try:
        return registry.champion_version()
    except ComponentError as error:  # must not keep us from going back
        _log.warning("%s", error)
        return None


def _keep_reason(registry: Registry, record: ModelRecord, error: BaseException) -> None:
    lines = (str(error) or type(error).__name__).splitlines()
    try:
        registry.record_stop(
            record.version, record.facts, f"the deployment failed: {lines[0].rstrip()}"
        )
    except ComponentError as problem:  # must not hide why it failed
        _log.warning("%s", problem)


def _raise_with(error: BaseException, outcome: str) -> NoReturn:
    """Raise an error again, with what answers now."""
    message = f"{str(error).rstrip()} -- {outcome}"
    if isinstance(error, ConflictError):
        raise ConflictError(message) from error
    if isinstance(error, ComponentError | ServingError | PolarMaskError | SystemExit):
        raise RollOutError(message) from error
    error.add_note(outcome)
    raise error
