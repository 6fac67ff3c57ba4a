"""What the local runner changes of KFP's own, without a whole run."""

from kfp.local import status
from kfp.local.orchestrator import task_executor
from kfp.pipeline_spec import pipeline_spec_pb2

from polarmask_pipelines import local_runner


def test_a_failed_step_is_not_tried_again_on_a_laptop_which_loses_no_pods(monkeypatch):
    tried = []

    def execute(*, task_name, task_spec, **_):
        tried.append((task_name, task_spec.retry_policy.max_retry_count))
        return {}, status.Status.FAILURE

    monkeypatch.setattr(task_executor, "execute_single_task", execute)
    spec = pipeline_spec_pb2.PipelineTaskSpec()
    spec.retry_policy.max_retry_count = 2
    results = []
    run, _ = local_runner._reporting(lambda _: None, results.append)
    run(task_name="train", task_spec=spec)
    assert tried == [("train", 0)]
    assert spec.retry_policy.max_retry_count == 2
    assert results[0].status == "failed"
