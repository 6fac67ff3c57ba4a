"""What to train, and where: the pipeline's parameters `train_...`, checked.

Preflight builds one `TrainingRequest` and hands it on as JSON. The train step reads it, and so do
the checks of the cluster and the builder of the job. A new parameter of training costs three
places: the pipeline, the step `preflight`, and a field here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

from pydantic import ConfigDict

from polarmask.config import presets
from polarmask.config.overrides import override
from polarmask.config.settings import RunConfig
from polarmask.config.validation import read_settings
from polarmask.errors import ConfigError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.parameters.train_on import ALL, AUTO, HERE, TRAINJOB


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """The model that a training starts from, fixed: other content at its place is refused."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    place: str
    """s3://bucket/key, an http(s) address, or the absolute path of a file or model folder."""
    sha256: str
    """Of the file, or of the folder's files (`polarmask.system.files.tree_sha256`)."""
    name: str
    """For people: `champion VERSION`, or the place without secrets."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What to train, where, and with how many processes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    preset: str
    """Name of a known run, or `auto`, which fits the data."""
    overrides: str = ""
    """Settings to change, `section.field=value`, separated by spaces; no spaces inside a value."""
    on: str = HERE
    nodes: int = 1
    """Machines to train on."""
    min_nodes: int = 0
    """Above 0, a job on the cluster continues with this many nodes if others are lost."""
    processes_per_node: int = 0
    """0 for as many as fit the machine (here), or one for each GPU (on the cluster)."""
    storage: str = ""
    """On the cluster: s3://bucket/prefix with a folder for each job."""
    job: JobSettings = field(default_factory=JobSettings)
    """On the cluster: the pods."""
    initial: InitialModel | None = None
    """None starts from the preset's weights."""

    def __post_init__(self) -> None:
        """Raise ConfigError, with the name of the pipeline's parameter, unless this can work."""
        batch_size = self.config.optim.batch_size
        if self.on not in ALL:
            raise ConfigError(f"train_on is {self.on!r}; there are: {', '.join(ALL)}")
        if self.nodes < 1:
            raise ConfigError(f"train_nodes is {self.nodes}: training needs at least 1 machine")
        if self.nodes > 1 and not self.on_cluster:
            raise ConfigError(
                f"train_nodes is {self.nodes}: a step trains on its own machine; set "
                f"train_on={AUTO}"
            )
        if self.processes_per_node < 0:
            raise ConfigError(
                f"train_processes_per_node is {self.processes_per_node}: give 1 or more, or 0 to "
                "fit them to the machine"
            )
        if not 0 <= self.min_nodes <= self.nodes:
            raise ConfigError(
                f"train_min_nodes is {self.min_nodes}: give 1 to train_nodes, {self.nodes}, or 0 "
                "to need all"
            )
        if self.on == TRAINJOB:
            self._check_trainjob()
        for nodes in range(self.min_nodes or self.nodes, self.nodes + 1):
            if batch_size % (nodes * self.known_processes_per_node):
                raise ConfigError(
                    f"optim.batch_size {batch_size} does not divide among {nodes} nodes of "
                    f"{self.known_processes_per_node} processes; change it with train_set, or "
                    "train_nodes, train_min_nodes or train_processes_per_node"
                )

    def _check_trainjob(self) -> None:
        """Refuse what a TrainJob has no fields for."""
        if self.is_elastic:
            raise ConfigError(
                f"train_min_nodes is {self.min_nodes}: the number of nodes of a TrainJob is fixed; "
                "set train_min_nodes=0, or install training-operator v1 for train_on=pytorchjob"
            )
        if self.job.priority_class:
            raise ConfigError(
                "train_job.priority_class can't be set for a TrainJob: write it into a "
                "TrainingRuntime, and name that in train_job.runtime"
            )

    @property
    def config(self) -> RunConfig:
        """The settings of the training; of `auto` those that do not depend on the data.

        Raises:
            ConfigError: No such preset or setting, or a value that can't work.
        """
        is_fitted = self.preset == presets.AUTO
        known = presets.tiny() if is_fitted else presets.preset(self.preset)
        return override(known, self.overrides.split())

    @property
    def on_cluster(self) -> bool:
        """Whether a job on the cluster trains, and not the step itself."""
        return self.on != HERE

    @property
    def is_elastic(self) -> bool:
        """Whether the number of nodes may change during training."""
        return self.min_nodes > 0

    @property
    def known_processes_per_node(self) -> int:
        """Processes on each node, as far as known before training: 1 where the machine decides."""
        gpus = self.job.gpus_per_node if self.on_cluster else 0
        return self.processes_per_node or gpus or 1

    def flags(self, provenance: Mapping[str, str]) -> list[str]:
        """Return the flags of `polarmask train` that decide what is learned, wherever it runs."""
        flags = ["--preset", self.preset]
        flags += [flag for value in self.overrides.split() for flag in ("--set", value)]
        start = {} if self.initial is None else {"init_from": self.initial.name}
        facts = [f"{name}={value}" for name, value in {**provenance, **start}.items()]
        return flags + [flag for fact in facts for flag in ("--provenance", fact)]

    def to_json(self) -> str:
        """Return it as text, for the steps after preflight."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned."""
        return read_settings(cls, json.loads(text), name="training_request")
