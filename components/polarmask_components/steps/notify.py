"""Exit step: send the final status of the pipeline run. Never cached."""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def notify(webhook: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """POST the final status as JSON; a webhook that can't be reached fails no run.

    Args:
        webhook: http(s) address; empty for none.
        status: Given by Kubeflow.
    """
    import logging

    from polarmask_components.notification import post

    message = {
        "run": status.pipeline_job_resource_name,
        "state": status.state,
        "error": status.error_message or "",
    }
    if webhook:
        logging.info(post(webhook, message))
