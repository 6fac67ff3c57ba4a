"""What the pods of steps ask for: a function for each class of step. No effect on a laptop.

Requests are small, so that a run fits a cluster of two cores beside Kubeflow; a step uses all cores
that are idle. Only memory is limited.

Kubeflow 2.17 resolves values of pods that are known at run time if they are texts: a number of
GPUs is ignored without a word, and so is an empty text, which thus asks for none.
"""

from typing import TypeAlias

from kfp import kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

Text: TypeAlias = str | PipelineChannel
"""A text, also one that is known at run time: a parameter or the output of a step."""

_GPU_TAINT = "nvidia.com/gpu"
"""The usual taint of nodes with GPUs."""
_SHM = "/dev/shm"  # noqa: S108  # no place for files of ours


def for_ops(*tasks: PipelineTask, memory: Text = "4Gi") -> None:
    """Give tasks what checks, calls of APIs and copies need.

    Args:
        tasks: The tasks.
        memory: Limit.
    """
    for task in tasks:
        task.set_cpu_request("20m").set_memory_request("128Mi")
        _limit_memory(task, memory)


def for_compute(*tasks: PipelineTask, memory: Text) -> None:
    """Give tasks what work on all data needs.

    Args:
        tasks: The tasks.
        memory: Limit; /dev/shm counts as memory.
    """
    for task in tasks:
        task.set_cpu_request("100m").set_memory_request("512Mi")
        _limit_memory(task, memory)
    share_memory(*tasks)


def for_gpu(*tasks: PipelineTask, memory: Text, gpu: Text, count: Text = "1") -> None:
    """Give tasks what `for_compute` gives, and GPUs.

    Args:
        tasks: The tasks.
        memory: Limit.
        gpu: Name of the resource, such as nvidia.com/gpu; empty asks for none.
        count: GPUs of each pod; empty asks for none.
    """
    for_compute(*tasks, memory=memory)
    for task in tasks:
        task.set_accelerator_type(gpu).set_accelerator_limit(count)
        _bring(task, gpu, count)
        kubernetes.add_toleration(task, key=_GPU_TAINT, operator="Exists", effect="NoSchedule")


def share_memory(*tasks: PipelineTask) -> None:
    """Give tasks a /dev/shm in which loader processes and NCCL fit; containers have 64 MB of it."""
    for task in tasks:
        kubernetes.empty_dir_mount(task, "shm", _SHM, medium="Memory", size_limit="8Gi")


def _limit_memory(task: PipelineTask, memory: Text) -> None:
    task.set_memory_limit(memory)
    _bring(task, memory)


def _bring(task: PipelineTask, *values: Text) -> None:
    """Bring values to a task in a condition or loop: KFP does so for arguments of steps only."""
    task.register_pipeline_channels([each for each in values if isinstance(each, PipelineChannel)])
