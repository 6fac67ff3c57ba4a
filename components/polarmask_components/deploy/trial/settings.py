"""How a new model is tried on live requests: the fields of the parameter `deploy_trial`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

from polarmask.config.validation import read_settings
from polarmask.errors import ConfigError
from polarmask_components.cluster.address import CLUSTER


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """Which requests the candidate gets, for how long, and its limits."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    copies: float = 0.0
    """Share of the requests of which it gets copies; clients never see its answers."""
    share: float = 0.0
    """Share of the requests that it answers. One of the two is above 0."""
    minutes: float = 10.0
    """From the first request on."""
    min_requests: int = 30
    """That have to be compared; with fewer the trial proves nothing, and the model stays out."""
    min_agreement: float = 0.7
    """Of copies: share of instances that both find, same category and box IoU at least 0.5."""
    max_errors: float = 0.01
    """Share of requests that it fails at, or, of copies, does not answer."""
    max_slowdown: float = 1.5
    """95th percentile of its seconds in the model, by that of the stable version."""

    def __post_init__(self) -> None:
        """Reject settings that can't work."""
        for name in ("copies", "share", "min_agreement", "max_errors"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"deploy_trial.{name} is {value}: give a share in [0, 1]")
        if (self.copies > 0) == (self.share > 0):
            raise ConfigError("deploy_trial: give copies or share, one of them above 0")
        if not 0 < self.minutes <= 24 * 60:
            raise ConfigError(f"deploy_trial.minutes is {self.minutes}: at most 1440")
        if self.min_requests < 0 or self.max_slowdown <= 0:
            raise ConfigError("deploy_trial: min_requests is 0 or more, max_slowdown above 0")


def read_trial_settings(plain: Mapping[str, Any]) -> TrialSettings | None:
    """Read the pipeline's parameter `deploy_trial`; None where it is empty: no trial.

    Raises:
        ConfigError: Names the field that can't work, or the known ones if there is no such field.
    """
    if not plain:
        return None
    return read_settings(TrialSettings, plain, name="deploy_trial")


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
