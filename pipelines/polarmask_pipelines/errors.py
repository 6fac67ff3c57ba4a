"""Exceptions, and what the user does about them.

PipelineError
    ParameterError     correct the value of --param
    CronError          correct the value of --cron
    KubeflowError      check the address, the token or what is on the server
"""

from polarmask.system.redaction import redact


class PipelineError(Exception):
    """Base of all exceptions that this package raises on purpose; without tokens of URLs."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redact(str(message)))


class ParameterError(PipelineError):
    """The pipeline has no such parameter, or the value is of another type."""


class CronError(PipelineError):
    """The schedule never comes, or Kubeflow would read it otherwise."""


class KubeflowError(PipelineError):
    """Kubeflow Pipelines can't be reached, refuses, or the recurring run is not ours."""
