"""The test double serves `kfp.Client` and refuses what the real server refuses."""

import json
import urllib.error
import urllib.request

import kfp
import pytest
from kfp_server_api import ApiException

from kube.kfp_rules import read_package

pytestmark = pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")


@pytest.fixture
def client(kfp_server):
    return kfp.Client(host=kfp_server.url)


@pytest.fixture
def uploaded(client, package, tmp_path):
    """Upload the pipeline; return what a run of it needs."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(package.text)
    pipeline = client.pipelines.pipeline_service_create_pipeline(
        pipeline=client.api_models.V2beta1Pipeline(name="polarmask")
    )
    version = client.upload_pipeline_version(str(path), "v1", pipeline_id=pipeline.pipeline_id)
    experiment = client.create_experiment("polarmask")
    return {
        "experiment_id": experiment.experiment_id,
        "pipeline_id": pipeline.pipeline_id,
        "version_id": version.pipeline_version_id,
    }


def test_the_client_s_own_methods_work(client, kfp_server, uploaded):
    assert client.get_pipeline_id("polarmask") == uploaded["pipeline_id"]
    assert client.create_experiment("polarmask").experiment_id == uploaded["experiment_id"]
    run = client.run_pipeline(job_name="first", params={"train_preset": "tiny"}, **uploaded)
    kfp_server.set_state(run.run_id, "SUCCEEDED")
    assert client.wait_for_run_completion(run.run_id, timeout=10).state == "SUCCEEDED"
    made = client.create_recurring_run(job_name="x", cron_expression="0 0 2 * * *", **uploaded)
    client.disable_recurring_run(made.recurring_run_id)
    assert client.get_recurring_run(made.recurring_run_id).mode == "DISABLE"
    client.delete_recurring_run(made.recurring_run_id)
    assert client.list_recurring_runs().recurring_runs is None


def test_a_terminated_run_is_cancelled_before_it_fails(client, uploaded):
    run = client.run_pipeline(job_name="x", **uploaded).run_id
    client.terminate_run(run)
    assert [client.get_run(run).state for _ in range(2)] == ["CANCELING", "FAILED"]


def test_a_failed_run_lists_every_level_without_texts(client, kfp_server, uploaded):
    run = client.run_pipeline(job_name="x", **uploaded).run_id
    kfp_server.set_state(run, "FAILED", failed=["train"])
    tasks = client.get_run(run).run_details.task_details
    failed = {each.display_name for each in tasks if each.state == "FAILED"}
    groups = {"root", "exit-handler-1", "condition-2", "train"}
    assert failed == groups | {f"{each}(0)" for each in groups} | {"executor"}
    assert {each.display_name for each in tasks} - failed == {f"{each}-driver" for each in groups}
    assert {(each.error, each.pod_name) for each in tasks} == {(None, None)}


@pytest.mark.parametrize(
    ("can_orphan", "policy", "state"),
    [(True, "ORPHAN", "RUNNING"), (True, None, "FAILED"), (False, "ORPHAN", "FAILED")],
)
def test_a_schedule_owns_its_runs(client, kfp_server, uploaded, can_orphan, policy, state):
    kfp_server.can_orphan = can_orphan
    made = client.create_recurring_run(job_name="x", cron_expression="0 0 2 * * *", **uploaded)
    run = kfp_server.start_scheduled_run(made.recurring_run_id)
    client.recurring_runs.recurring_run_service_delete_recurring_run(
        made.recurring_run_id, propagation_policy=policy
    )
    assert client.get_run(run).state == state


@pytest.mark.parametrize(
    ("parameters", "expected_text"),
    [
        ({"no_such": 1}, "parameter no_such is not in the pipeline"),
        ({"train_nodes": "2"}, "train_nodes requires type NUMBER_INTEGER"),
        ({"train_nodes": 1.5}, "train_nodes requires type NUMBER_INTEGER"),
        ({"eval_floor_ap": True}, "eval_floor_ap requires type NUMBER_DOUBLE"),
        ({"train_preset": 1}, "train_preset requires type STRING"),
    ],
)
def test_parameters_are_checked_against_the_pipeline(client, uploaded, parameters, expected_text):
    with pytest.raises(ApiException) as caught:
        client.run_pipeline(job_name="x", params=parameters, **uploaded)
    assert caught.value.status == 400
    assert expected_text in json.loads(caught.value.body)["message"]


@pytest.mark.parametrize(
    "value", ["1234e56", "0o17", "1_000", "on", "y", ".inf", "2024-01-02", "1.", "~"]
)
def test_yaml_is_read_as_the_backend_does(value):
    parameters = f"{{p: {{parameterType: STRING, defaultValue: {value}}}}}"
    text = (
        f"{{pipelineInfo: {{name: x}}, root: {{inputDefinitions: {{parameters: {parameters}}}}}}}"
    )
    definition = read_package(text).root.input_definitions.parameters["p"]
    assert definition.default_value.string_value != value


@pytest.mark.parametrize("cron", ["0 2 * * *", "0 0 2 * * 7", "0 61 * * * *", "0 */0 * * * *", "x"])
def test_cron_is_read_as_the_backend_does(client, uploaded, cron):
    with pytest.raises(ApiException, match="not a supported format"):
        client.create_recurring_run(job_name="x", cron_expression=cron, **uploaded)


def test_concurrency_is_one_to_ten(client, uploaded):
    for number in (0, 11):
        with pytest.raises(ApiException, match="out of range"):
            client.create_recurring_run(
                job_name="x", cron_expression="0 0 2 * * *", max_concurrency=number, **uploaded
            )


def test_a_version_s_name_is_unique_and_its_file_a_pipeline(client, uploaded, package, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(package.text)
    with pytest.raises(ApiException) as caught:
        client.upload_pipeline_version(str(path), "v1", pipeline_id=uploaded["pipeline_id"])
    assert caught.value.status == 409
    path.write_text("pipelineInfo: {name: x}\nno_such: 1\n")
    with pytest.raises(ApiException, match="pipeline spec is invalid"):
        client.upload_pipeline_version(str(path), "v2", pipeline_id=uploaded["pipeline_id"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("runs", {"display_name": "x", "no_such": 1}),
        ("runs", {"display_name": "x", "runtime_config": {"params": {}}}),
        ("experiments", {"display_name": 1}),
        ("recurringruns", {"display_name": "x", "max_concurrency": 1.5}),
        ("recurringruns", {"display_name": "x", "mode": "ON"}),
    ],
)
def test_unknown_and_wrong_fields_are_refused(kfp_server, path, body):
    request = urllib.request.Request(
        f"{kfp_server.url}/apis/v2beta1/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
    with caught.value as answer:
        assert answer.status == 400


def test_unknown_ids_are_404(client, uploaded):
    for ask in (client.get_run, client.get_recurring_run, client.get_pipeline):
        with pytest.raises(ApiException) as caught:
            ask("no-such-id")
        assert caught.value.status == 404
