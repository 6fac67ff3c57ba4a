"""What the pods of steps ask for: the parameters `eval_...` and `label_...` that name hardware."""

from dataclasses import dataclass

from polarmask.errors import ConfigError
from polarmask_components.parameters.job_settings import is_quantity

CPU, CUDA = "cpu", "cuda"
"""Values of `label_device`."""


@dataclass(frozen=True, kw_only=True)
class StepResources:
    """Hardware of the steps; what a training job asks for stands in `JobSettings`."""

    eval_gpus: int = 0
    """Of each step that evaluates."""
    eval_memory: str = "16Gi"
    label_device: str = CPU
    """Where the label pods work: cuda gives each one GPU."""
    label_memory: str = "16Gi"

    def __post_init__(self) -> None:
        """Raise ConfigError, with the name of the pipeline's parameter, unless this can work."""
        if self.eval_gpus < 0:
            raise ConfigError(f"eval_gpus is {self.eval_gpus}: give 1 or more, or 0 for CPUs")
        if self.label_device not in (CPU, CUDA):
            raise ConfigError(f"label_device is {self.label_device!r}; there are: {CPU}, {CUDA}")
        for name in ("eval_memory", "label_memory"):
            if not is_quantity(getattr(self, name)):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which is no amount; write for example 16Gi"
                )

    @property
    def eval_gpu_text(self) -> str:
        """For Kubeflow, which takes texts only; empty asks for none."""
        return str(self.eval_gpus or "")

    @property
    def label_gpu_text(self) -> str:
        """As `eval_gpu_text`, for each label pod."""
        return "1" if self.label_device == CUDA else ""
