"""Exit step: send the final status of the pipeline run. Never cached."""

from typing import Any

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def notify(
    webhook: str,
    status: dsl.PipelineTaskFinalStatus,
    on: str = "here",
    job: dict[str, Any] = {},  # noqa: B006  # Kubeflow reads it
    target: str = "",
) -> None:
    """Send the final status, and end a training job that the run left; never fails a run.

    The train step deletes its job itself, unless its pod was lost and not started again.

    Args:
        webhook: http(s) address that gets the status as JSON; empty for none.
        status: Given by Kubeflow.
        on: Where the run trains: `auto`, `pytorchjob`, `trainjob` or `here`.
        job: Pods of the training job: fields of `job_settings.JobSettings`.
        target: Where the run deploys; the job's namespace follows it.
    """
    import logging

    from polarmask_components.notification import post

    if on != "here":
        from polarmask_components.cluster.address import job_namespace
        from polarmask_components.training.job_identity import end_job_of_run

        namespace = job_namespace(job.get("namespace", ""), target)
        logging.info(end_job_of_run(namespace, on))
    message = {
        "run": status.pipeline_job_resource_name,
        "state": status.state,
        "error": status.error_message or "",
    }
    text = " ".join(part for part in ("PolarMask:", *message.values()) if part)
    if status.state == "SUCCEEDED":  # with a stopped model, too
        text += "; the page of its gate says whether a model was deployed"
    if webhook:
        logging.info(post(webhook, {"text": text, **message}))
