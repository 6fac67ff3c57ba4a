"""What can go wrong between a command line and Kubeflow, by whose hand it is mended.

PipelineError
    ParameterError     write the parameter of the pipeline as it says
    CronError          write the schedule as it says
    KubeflowError      Kubeflow Pipelines can't be reached, or refuses
"""


class PipelineError(Exception):
    """Base of everything this package raises on purpose."""


class ParameterError(PipelineError):
    """No parameter of the pipeline, or a value of another type."""


class CronError(PipelineError):
    """No schedule that ever comes, or one that Kubeflow would read otherwise."""


class KubeflowError(PipelineError):
    """Kubeflow Pipelines can't be reached, refuses, or holds what this command must not touch."""
