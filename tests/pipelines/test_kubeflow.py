"""The commands for Kubeflow, through the real `kfp.Client` to a test double of the server."""

import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import yaml

from kube.faults import Fault
from kube.kfp_rules import read_package
from kube.kfp_server import KfpServer
from kube.server import KubeServer
from polarmask_pipelines.__main__ import main
from polarmask_pipelines.commands import kubeflow
from polarmask_pipelines.package import compile_package
from started import started

NIGHTLY = ["schedule", "apply", "nightly", "--cron", "0 2 * * *"]


def only(table):
    (found,) = table.values()
    return found


def run_parameters(thing):
    return thing["runtime_config"]["parameters"]


# submit


def test_first_submit_uploads_makes_the_experiment_and_runs(kfp_server, capsys):
    assert main(["submit", "--param", "train_preset=tiny", "--param", "train_nodes=2"]) == 0
    run = only(kfp_server.runs)
    assert run_parameters(run) == {"train_preset": "tiny", "train_nodes": 2}
    assert run["experiment_id"] == only(kfp_server.experiments)["experiment_id"]
    version = only(kfp_server.versions)
    assert (
        run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    )
    assert re.fullmatch("[0-9a-f]{12}", version["name"])
    printed = capsys.readouterr().out
    assert f"version {version['name']}: upload" in printed
    assert f"{kfp_server.url}/#/runs/details/{run['run_id']}" in printed


def test_second_submit_uploads_nothing(kfp_server, capsys):
    assert main(["submit"]) == 0
    before = len(kfp_server.changes())
    assert main(["submit", "--name", "again"]) == 0
    assert kfp_server.changes()[before:] == ["POST /apis/v2beta1/runs"]
    assert [run["display_name"] for run in kfp_server.runs.values()][1] == "again"
    assert "exists" in capsys.readouterr().out


def test_dry_run_of_submit_prints_what_would_be_done_and_does_nothing(kfp_server, capsys):
    assert main(["submit", "--dry-run", "--param", "train_preset=tiny"]) == 0
    assert kfp_server.changes() == []
    printed = capsys.readouterr().out
    assert "experiment  polarmask: create" in printed
    assert "train_preset=tiny" in printed
    assert "nothing was changed" in printed


@pytest.mark.parametrize("command", [["submit"], ["schedule", "apply", "n", "--cron", "0 2 * * *"]])
def test_pipeline_root_goes_with_the_run(kfp_server, command):
    root = "s3://team/kfp?endpoint=s3.example&region=a"
    assert main([*command, "--pipeline-root", root]) == 0
    made = kfp_server.runs or kfp_server.recurring_runs
    assert only(made)["runtime_config"]["pipeline_root"] == root


@pytest.mark.parametrize("root", ["runs/here", "s3:/team", "file:///x", "minio://"])
def test_pipeline_root_that_kubeflow_would_refuse_later_is_refused(kfp_server, capsys, root):
    assert main(["submit", "--pipeline-root", root]) == 2
    assert "Kubeflow would call it an unsupported Cloud bucket; write minio://" in (
        capsys.readouterr().err
    )
    assert kfp_server.requests == []


def test_service_account_goes_with_the_run(kfp_server):
    assert main(["submit", "--service-account", "polarmask-pipeline"]) == 0
    assert only(kfp_server.runs)["service_account"] == "polarmask-pipeline"


@pytest.mark.parametrize("state", ["SUCCEEDED", "SKIPPED"])
def test_waiting_ends_with_the_run(kfp_server, capsys, state):
    after_start(kfp_server, lambda run: kfp_server.set_state(run, state))
    assert main(["submit", "--wait"]) == 0
    assert state.lower() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("succeeded", "code"),
    [
        pytest.param(["root", "gate-model", "deploy-torchserve(0)"], 0, id="deployed"),
        pytest.param(["root", "train", "gate-model(0)", "remember-run-2"], 3, id="stopped"),
        pytest.param(["root", "check-changed"], 0, id="nothing-changed"),
    ],
)
def test_a_run_that_the_gate_stopped_is_no_success(kfp_server, capsys, succeeded, code):
    after_start(kfp_server, lambda run: kfp_server.set_state(run, "SUCCEEDED", succeeded=succeeded))
    assert main(["submit", "--wait"]) == code
    assert ("STOPPED     by the gate: no model was deployed" in capsys.readouterr().out) is bool(
        code
    )


def fail(server, *steps, **options):
    after_start(server, lambda run: server.set_state(run, "FAILED", failed=steps, **options))


@pytest.mark.parametrize("steps", [["preflight"], ["train"], ["measure-engines", "remember-run"]])
def test_of_a_failed_run_the_one_step_is_named_and_the_way_to_its_log(kfp_server, capsys, steps):
    fail(kfp_server, *steps, error="dead")
    assert main(["submit", "--wait"]) == 1
    printed = capsys.readouterr().out
    run = only(kfp_server.runs)["run_id"]
    assert re.findall(r"^failed .*", printed, re.MULTILINE) == [f"failed      {steps[0]}"]
    assert "error       dead" in printed
    assert f"kubectl -n kubeflow logs -l pipeline/runid={run} --prefix --tail 100 -c" in printed


def test_a_step_that_worked_at_its_second_try_is_not_named(kfp_server, package, capsys):
    def act(run):
        kfp_server.set_state(run, "FAILED", failed=["ingest-coco", "gate-model"])
        tasks = kfp_server.runs[run]["run_details"]["task_details"]
        again = next(each for each in tasks if each["display_name"] == "ingest-coco")
        again["state"] = "SUCCEEDED"

    after_start(kfp_server, act)
    assert main(["submit", "--wait"]) == 1
    assert "failed      gate-model\n" in capsys.readouterr().out


def put_step_pod(kube, run, path, lines=(), status=None):
    """Create the pod of a step as Argo does, with its log."""
    name = f"run-system-container-impl-{len(kube.list('Pod'))}"
    meta = {"name": name, "labels": {"pipeline/runid": run}}
    meta["annotations"] = {"workflows.argoproj.io/node-name": f"run.root.{path}"}
    spec = {"containers": [{"name": "main", "image": "trainer:1"}]}
    pod = kube.create("Pod", {"metadata": meta, "spec": spec})
    log = kube.logs.start(pod, "main")
    for line in lines:
        kube.logs.write(log, f"{line}\n")
    ended = {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    ended |= {"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
    new = {"phase": "Failed", "containerStatuses": [ended]} | (status or {})
    kube.update("Pod", name, lambda obj: obj["status"].update(new), status=True)
    return name


@pytest.fixture
def kubeflow_namespace(monkeypatch, tmp_path):
    """The namespace kubeflow of a cluster that KUBECONFIG names."""
    with KubeServer(namespace="kubeflow") as running:
        monkeypatch.setenv("KUBECONFIG", str(running.write_kubeconfig(tmp_path / "kubeconfig")))
        yield running


def test_the_last_lines_of_the_step_are_printed_and_the_command_for_the_rest(
    kfp_server, kubeflow_namespace, capsys
):
    pods = []

    def act(run):
        path = "exit-handler-1(0).exit-handler-1.condition-2(0)"
        put_step_pod(kubeflow_namespace, run, f"{path}.evaluate(0).executor", ["not this one"])
        lines = [f"line {number}" for number in range(20)]
        lines += ["LaunchError: the GPU fell off https://t0k@git/x", "", 'time="..." level=error']
        lines += ["F1129 12:00:00.000000 1 main.go:65] failed to execute component: exit status 1"]
        pods.append(put_step_pod(kubeflow_namespace, run, f"{path}.train(0).executor", lines))
        kfp_server.set_state(run, "FAILED", failed=["train"])

    after_start(kfp_server, act)
    assert main(["submit", "--wait"]) == 1
    printed = capsys.readouterr().out
    assert "failed      train: exit code 1 (Error)\n" in printed
    assert "  | line 19\n  | LaunchError: the GPU fell off https://***@git/x\n" in printed
    for unwanted in ("| line 2\n", "main.go", "level=error", "not this one"):
        assert unwanted not in printed
    assert f"log         kubectl -n kubeflow logs {pods[0]} -c main\n" in printed


@pytest.mark.parametrize(
    ("status", "expected_text"),
    [
        ({"reason": "Evicted", "message": "low on memory"}, "Evicted: low on memory"),
        ({"containerStatuses": []}, "train"),
    ],
)
def test_a_step_without_last_words_has_the_reason_of_its_pod(
    kfp_server, kubeflow_namespace, capsys, status, expected_text
):
    def act(run):
        put_step_pod(kubeflow_namespace, run, "train-driver", status=status)
        kfp_server.set_state(run, "FAILED", failed=["train"])

    after_start(kfp_server, act)
    assert main(["submit", "--wait"]) == 1
    assert re.search(r"^failed .*", capsys.readouterr().out, re.MULTILINE)[0].endswith(
        expected_text
    )


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_somebody_ended_is_no_failure(kfp_server, capsys, state):
    kfp_server.terminated = state
    after_start(kfp_server, kfp_server.terminate_run)
    assert main(["submit", "--wait"]) == 4
    printed = capsys.readouterr().out
    assert "CANCELLED   somebody ended the run" in printed
    assert "failed      " not in printed


def test_wait_continues_after_a_restart_of_the_server(kfp_server, capsys):
    faults = [
        kfp_server.faults.add(Fault("GET .*/runs/", drop=True, times=5)),
        kfp_server.faults.add(Fault("GET .*/runs/", status=503, times=2)),
    ]
    after_start(kfp_server, lambda run: kfp_server.set_state(run, "SUCCEEDED"))
    assert main(["submit", "--wait"]) == 0
    assert [fault.hits for fault in faults] == [5, 2]


def test_interrupted_wait_leaves_the_run_alone(kfp_server):
    command = [sys.executable, "-m", "polarmask_pipelines", "submit", "--wait"]
    with started(command, stdout=subprocess.PIPE, text=True) as waiting:
        for line in waiting.stdout:
            if "pending" in line:
                break
        waiting.send_signal(2)
        rest, _ = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert "the run continues" in rest
    assert only(kfp_server.runs)["state"] == "PENDING"


def after_start(server, do):
    """Do something to the run once there is one."""

    def wait():
        deadline = time.monotonic() + 30
        while not server.runs and time.monotonic() < deadline:
            time.sleep(0.01)
        do(next(iter(server.runs)))

    threading.Thread(target=wait, daemon=True).start()


# schedule


def test_applying_twice_is_applying_once(kfp_server, capsys):
    assert main(NIGHTLY) == 0
    first = dict(only(kfp_server.recurring_runs))
    before = len(kfp_server.changes())
    assert "create nightly" in capsys.readouterr().out
    assert main(NIGHTLY) == 0
    assert kfp_server.changes()[before:] == []
    assert only(kfp_server.recurring_runs) == first
    assert "keep nightly" in capsys.readouterr().out


def test_a_schedule_runs_one_at_a_time_and_skips_times_that_passed(kfp_server):
    assert main([*NIGHTLY, "--param", "data_revision=main"]) == 0
    made = only(kfp_server.recurring_runs)
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert (int(made["max_concurrency"]), made["no_catchup"]) == (1, True)
    assert made["mode"] == "ENABLE"
    assert run_parameters(made)["data_revision"] == "main"


@pytest.mark.parametrize(
    "change",
    [
        ["--cron", "0 3 * * *"],
        ["--param", "eval_floor_ap=0.3"],
        ["--service-account", "other"],
        ["--pipeline-root", "s3://other"],
    ],
)
def test_a_changed_schedule_replaces_the_old_one(kfp_server, capsys, change):
    assert main(NIGHTLY) == 0
    old = only(kfp_server.recurring_runs)["recurring_run_id"]
    assert main([*NIGHTLY, *change]) == 0
    assert only(kfp_server.recurring_runs)["recurring_run_id"] != old
    assert "replace nightly" in capsys.readouterr().out
    before = kfp_server.changes().index(f"DELETE /apis/v2beta1/recurringruns/{old}")
    posts = [each.split()[0] for each in kfp_server.changes()[:before] if "recurring" in each]
    assert posts.count("POST") == 2  # never without one


def test_new_code_replaces_the_schedule(kfp_server, monkeypatch, package):
    assert main(NIGHTLY) == 0
    changed = replace(package, text=package.text + "# changed\n")
    monkeypatch.setattr(kubeflow, "compile_package", lambda _: changed)
    assert main(NIGHTLY) == 0
    newest = list(kfp_server.versions.values())[-1]["pipeline_version_id"]
    reference = only(kfp_server.recurring_runs)["pipeline_version_reference"]
    assert len(kfp_server.versions) == 2
    assert reference["pipeline_version_id"] == newest


def test_pausing_and_resuming_keep_the_schedule(kfp_server):
    assert main(NIGHTLY) == 0
    identity = only(kfp_server.recurring_runs)["recurring_run_id"]
    assert main([*NIGHTLY, "--paused"]) == 0
    assert only(kfp_server.recurring_runs)["mode"] == "DISABLE"
    assert main(NIGHTLY) == 0
    assert only(kfp_server.recurring_runs)["mode"] == "ENABLE"
    assert only(kfp_server.recurring_runs)["recurring_run_id"] == identity


@pytest.mark.parametrize(
    "change", [[*NIGHTLY, "--cron", "0 3 * * *"], ["schedule", "delete", "nightly"]]
)
def test_a_run_outlives_the_schedule_that_started_it(kfp_server, change):
    assert main(NIGHTLY) == 0
    old = only(kfp_server.recurring_runs)["recurring_run_id"]
    run = kfp_server.start_scheduled_run(old)
    assert main(change) == 0
    assert old not in kfp_server.recurring_runs
    assert kfp_server.runs[run]["state"] == "RUNNING"


@pytest.mark.parametrize(
    ("change", "left"),
    [([*NIGHTLY, "--cron", "0 3 * * *"], 1), (["schedule", "delete", "nightly"], 0)],
)
def test_a_server_that_would_end_the_run_deletes_its_schedule_later(
    kfp_server, capsys, change, left
):
    kfp_server.can_orphan = False
    assert main(NIGHTLY) == 0
    old = only(kfp_server.recurring_runs)["recurring_run_id"]
    run = kfp_server.start_scheduled_run(old)
    for _ in range(2):
        assert main(change) == 0
        assert kfp_server.runs[run]["state"] == "RUNNING"
        assert kfp_server.recurring_runs[old]["mode"] == "DISABLE"
        assert "deletes it after its run has ended" in capsys.readouterr().out
    kfp_server.set_state(run, "SUCCEEDED")
    assert main(change) == 0
    assert old not in kfp_server.recurring_runs
    assert len(kfp_server.recurring_runs) == left
    assert "after its run" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [NIGHTLY, [*NIGHTLY, "--paused"]])
def test_dry_run_of_apply_changes_nothing(kfp_server, capsys, arguments):
    assert main([*arguments, "--dry-run"]) == 0
    assert kfp_server.changes() == []
    assert main(NIGHTLY) == 0
    before = len(kfp_server.changes())
    assert main([*arguments, "--cron", "5 5 * * *", "--dry-run"]) == 0
    assert kfp_server.changes()[before:] == []
    assert "replace nightly: 5 5 * * *" in capsys.readouterr().out


def test_an_interrupted_apply_is_completed_by_the_next(kfp_server, capsys):
    assert main(NIGHTLY) == 0
    kfp_server.faults.add(Fault("DELETE", drop=True, times=4))
    changed = [*NIGHTLY, "--cron", "0 3 * * *"]
    assert main(changed) == 2
    assert len(kfp_server.recurring_runs) == 2
    assert main(changed) == 0
    assert "remove duplicates of nightly" in capsys.readouterr().out
    assert only(kfp_server.recurring_runs)["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"


def test_an_apply_whose_response_got_lost_makes_no_second_schedule(kfp_server, capsys):
    kfp_server.faults.add(Fault("POST .*/recurringruns", lose_answer=True))
    assert main(NIGHTLY) == 2
    assert "may have taken effect" in capsys.readouterr().err
    assert main(NIGHTLY) == 0
    assert "keep nightly" in capsys.readouterr().out
    assert len(kfp_server.recurring_runs) == 1


def make_foreign(kfp_server, name, number=1):
    """Create recurring runs, as a user of the UI."""
    ours = dict(only(kfp_server.recurring_runs))
    for index in range(number):
        theirs = {**ours, "recurring_run_id": f"foreign-{index}", "display_name": name}
        kfp_server.recurring_runs[f"foreign-{index}"] = {**theirs, "description": "mine"}


def test_recurring_runs_of_others_are_kept_even_with_the_same_name(kfp_server, capsys):
    assert main(NIGHTLY) == 0
    make_foreign(kfp_server, "nightly")
    assert main([*NIGHTLY, "--cron", "0 3 * * *"]) == 0
    assert main(["schedule", "delete", "nightly"]) == 0
    assert list(kfp_server.recurring_runs) == ["foreign-0"]
    assert main(["schedule", "delete", "nightly"]) == 2
    assert "was not made by `schedule apply`" in capsys.readouterr().err


def test_a_schedule_is_found_behind_many_pages(kfp_server):
    assert main(NIGHTLY) == 0
    ours = kfp_server.recurring_runs.copy()
    make_foreign(kfp_server, "other", number=450)
    identity, run = ours.popitem()
    del kfp_server.recurring_runs[identity]
    kfp_server.recurring_runs[identity] = run  # last
    before = len(kfp_server.changes())
    assert main(NIGHTLY) == 0
    assert kfp_server.changes()[before:] == []


def test_list_shows_what_is_ours(kfp_server, capsys):
    assert main(["schedule", "list"]) == 0
    assert "no schedules in experiment polarmask" in capsys.readouterr().out
    assert main([*NIGHTLY, "--param", "data_revision=main"]) == 0
    assert main(["schedule", "apply", "weekly", "--cron", "0 4 * * 0", "--paused"]) == 0
    make = dict(next(iter(kfp_server.recurring_runs.values())))
    kfp_server.recurring_runs["foreign"] = {**make, "description": ""}
    capsys.readouterr()
    assert main(["schedule", "list"]) == 0
    nightly, weekly, others = capsys.readouterr().out.splitlines()
    assert re.match(r"nightly +on +0 2 \* \* \* +data_revision=main", nightly)
    assert re.match(r"weekly +paused +0 4 \* \* 0", weekly)
    assert others == "and 1 made by others"


def test_secrets_in_parameters_are_not_printed(kfp_server, capsys):
    secrets = ("notify_webhook=https://chat.example/T0/s3cr3t", "data_repository=https://t0k@git/x")
    given = [part for each in secrets for part in ("--param", each)]
    assert main([*NIGHTLY, *given]) == 0
    assert main(["schedule", "list"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("notify_webhook=https://chat.example/***") == 2
    assert printed.count("data_repository=https://***@git/x") == 2
    assert run_parameters(only(kfp_server.recurring_runs))["data_repository"] == "https://t0k@git/x"


def test_delete_is_idempotent_and_has_a_dry_run(kfp_server, capsys):
    assert main(NIGHTLY) == 0
    before = len(kfp_server.changes())
    assert main(["schedule", "delete", "nightly", "--dry-run"]) == 0
    assert kfp_server.changes()[before:] == []
    assert main(["schedule", "delete", "nightly"]) == 0
    assert kfp_server.recurring_runs == {}
    assert main(["schedule", "delete", "nightly"]) == 0
    assert "no schedule nightly" in capsys.readouterr().out


def test_wrong_cron_is_reported_before_any_request(kfp_server, capsys):
    assert main(["schedule", "apply", "nightly", "--cron", "0 0 2 * * *"]) == 2
    assert "has 6 fields; write five" in capsys.readouterr().err
    assert kfp_server.requests == []


@pytest.mark.parametrize(
    ("parameter", "expected_text"),
    [
        ("train_preset=tyni", "tyni"),
        ("eval_floor_ap=7", "eval_floor_ap is 7.0: mask AP is in [0, 1]"),
        ("label_pods=-3", "label_pods is -3"),
        ("train_nodes=0", "train_nodes is 0"),
        ("train_set=optim.lr=x", "optim.lr"),
        ('train_job={"cpus": 1}', "train_job.cpus is not a setting"),
        ('deploy_trial={"copies": 2}', "deploy_trial.copies is 2"),
        ("deploy_model_name=a/b", "deploy_model_name"),
        ("deploy_target=kubernetes://polarmask", "give kubernetes://NAMESPACE/NAME"),
        ("train_storage=runs", "train_storage: 'runs' is no place in object storage"),
        ("notify_webhook=chat", "notify_webhook is no web address"),
    ],
)
@pytest.mark.parametrize("command", [["submit"], NIGHTLY, ["compile", "--out", "team.yaml"]])
def test_a_value_that_can_never_work_is_refused_before_any_request(
    kfp_server, capsys, tmp_path, monkeypatch, command, parameter, expected_text
):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--param", parameter]) == 2
    assert expected_text in capsys.readouterr().err
    assert kfp_server.requests == []
    assert list(tmp_path.glob("*.yaml")) == []


# connecting


def test_missing_host_is_reported_with_how_to_get_one(no_user_settings, capsys):
    assert main(["submit"]) == 2
    assert "KFP_HOST" in capsys.readouterr().err


def test_host_without_a_server_is_reported_at_once(kfp_server, capsys):
    with KfpServer() as gone:
        pass
    began = time.monotonic()
    assert main(["submit", "--host", gone.url]) == 2
    assert time.monotonic() - began < 10
    printed = capsys.readouterr().err
    assert "gave no answer" in printed
    assert "Connection refused" in printed
    assert printed.count("\n") == 1


def test_token_is_sent_and_a_missing_one_is_reported(no_user_settings, monkeypatch, capsys):
    with KfpServer(token="secret") as server:
        assert main(["submit", "--host", server.url]) == 2
        printed = capsys.readouterr().err
        assert "refused (401)" in printed
        assert "KFP_TOKEN" in printed
        monkeypatch.setenv("KFP_TOKEN", "secret")
        assert main(["submit", "--host", server.url]) == 0
        assert len(server.runs) == 1


def test_server_of_several_users_needs_a_namespace(no_user_settings, capsys):
    with KfpServer(multi_user=True) as server:
        assert main(["submit", "--host", server.url]) == 2
        assert "give --namespace" in capsys.readouterr().err
        for _ in range(2):
            assert main(["submit", "--host", server.url, "--namespace", "team"]) == 0
        assert only(server.experiments)["namespace"] == "team"
        assert only(server.pipelines)["namespace"] == "team"


def test_login_page_is_reported(kfp_server, capsys):
    kfp_server.login_page = True
    assert main(["submit"]) == 2
    assert "does not answer as Kubeflow Pipelines" in capsys.readouterr().err


def test_refusal_is_reported_with_the_server_s_message(kfp_server, capsys):
    kfp_server.faults.add(Fault("POST .*/runs", status=400))
    assert main(["submit"]) == 2
    message = f"error: {kfp_server.url} refused (400): an injected fault\n"
    assert capsys.readouterr().err == message


def test_archived_experiment_is_reported(kfp_server, capsys):
    assert main(["submit"]) == 0
    only(kfp_server.experiments)["storage_state"] = "ARCHIVED"
    assert main(["submit"]) == 2
    assert "experiment polarmask is archived" in capsys.readouterr().err


def test_requests_to_a_busy_server_are_retried(kfp_server):
    kfp_server.faults.add(Fault("GET .*/pipelines", status=503, times=2))
    assert main(["submit"]) == 0


def test_help_of_each_command_has_an_example(capsys):
    for command in (
        ["submit"],
        ["compile"],
        ["schedule", "apply"],
        ["schedule", "list"],
        ["schedule", "delete"],
    ):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert f"example: python -m polarmask_pipelines {' '.join(command)}" in " ".join(
            capsys.readouterr().out.split()
        )


# compile


def test_compiled_defaults_are_those_given(tmp_path):
    out = tmp_path / "team.yaml"
    given = ["--param", "train_preset=tiny", "--param", "eval_floor_ap=0.5"]
    assert main(["compile", "--out", str(out), *given]) == 0
    parameters = next(yaml.safe_load_all(out.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert parameters["train_preset"]["defaultValue"] == "tiny"
    assert parameters["eval_floor_ap"]["defaultValue"] == 0.5
    assert parameters["data_revision"]["defaultValue"] == "HEAD"


@pytest.mark.parametrize(
    "value",
    [
        *("1234e56", "12345678", "1e3", "0o17", "017", "0x1f", "1_000", "+1", "-.5", "1.", "5.e3"),
        *("on", "off", "Yes", "n", "true", "null", "~", "", ".inf", "-.INF", ".nan"),
        *("2024-01-02", "2001-12-14t21:59:43.10-05:00", "1:30", "main", "v1.2", "feature/#1: x"),
    ],
)
def test_every_text_reaches_the_server_as_that_text(value):
    text = compile_package({"data_revision": value}).text
    known = read_package(text).root.input_definitions.parameters
    assert known["data_revision"].default_value.string_value == value
    assert known["data_revision"].default_value.WhichOneof("kind") == "string_value"


def test_compiling_with_defaults_leaves_the_next_compilation_alone(tmp_path):
    for name, given in (("a", []), ("b", ["--param", "train_preset=tiny"]), ("c", [])):
        assert main(["compile", "--out", str(tmp_path / name), *given]) == 0
    assert (tmp_path / "a").read_text() == (tmp_path / "c").read_text()
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()


def test_image_of_no_version_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("polarmask_pipelines.package.OPS_IMAGE", "polarmask-ops:latest")
    assert main(["compile", "--out", str(tmp_path / "team.yaml")]) == 2
    assert "POLARMASK_OPS_IMAGE: image polarmask-ops:latest names" in capsys.readouterr().err
    assert not (tmp_path / "team.yaml").exists()
