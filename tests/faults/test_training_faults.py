"""What goes wrong while a cluster trains: each test breaks one thing and states what happens then.

The pods run small scripts instead of the training; `test_training_pod_faults.py` breaks that.
"""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kube.faults import Fault
from kube.server import KubeServer
from polarmask_components.cluster.connection import call_api, connect
from polarmask_components.errors import ClusterError, LaunchError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.training.job_launcher import Pace, run_job
from polarmask_components.training.pytorchjob import manifest_of
from training_jobs import ScriptJob, Storage, training_job

pytestmark = pytest.mark.faults

PACE = Pace(look=0.1, stuck=1.0, removal=20.0, cleanup_deadline=2.0)
NAME = "polarmask-train-0123456789"


def job_of(script, nodes=2, settings=None, **changes):
    small = JobSettings(**{"secret": "", "cpu": "100m", "memory": "64Mi"} | (settings or {}))
    return training_job(ScriptJob, script=script, name=NAME, nodes=nodes, job=small, **changes)


@pytest.fixture
def launch(cluster, tmp_path):
    """Run a job to its end, its result being the file `result`."""

    def run(job, pace=PACE):
        return run_job(job, Storage(job, tmp_path / "result"), connect(), pace=pace)

    return run


@pytest.fixture
def result(tmp_path):
    """An expression that leaves the result; the path of the file is no path in a pod."""
    path = str(tmp_path / "result").encode().hex()
    return f"open(bytes.fromhex({path!r}).decode(), 'w').close()"


@pytest.fixture
def good(result):
    """A script that trains for a second and leaves its result."""
    return STEPS + result


STEPS = """
import time
for step in range(20):
    print(f"step={step}", flush=True)
    time.sleep(0.05)
"""
ALL_STEPS = [f"step={step}" for step in range(20)]
ONCE = """
import pathlib, sys
if not pathlib.Path("/workspace/tried").exists():
    pathlib.Path("/workspace/tried").touch()
    {}
"""
FOREVER = "import time\nprint('step=1', flush=True)\ntime.sleep(1000)"


def fails(text, code=1):
    return f"import sys; print({text!r}); sys.exit({code})"


def wait_for_line(cluster, text, timeout=30):
    give_up = time.monotonic() + timeout
    while text not in cluster.server.logs.text(f"{NAME}-master-0"):
        assert time.monotonic() < give_up
        time.sleep(0.02)


@contextmanager
def meanwhile(act):
    """Act in a thread while the block runs; what it raises is raised at the end."""
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(act)
        yield
        done.result()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(".", status=503, times=4), id="T01 API is busy -> tried again"),
        pytest.param(Fault(".", status=429, times=3, skip=5), id="T02 API throttles -> slower"),
        pytest.param(
            Fault(".", drop=True, times=4, skip=3), id="T03 connections drop -> tried again"
        ),
        pytest.param(
            Fault("POST .*/pytorchjobs", lose_answer=True),
            id="T04 answer to the submission is lost -> its job is taken over, not doubled",
        ),
        pytest.param(
            Fault("GET .*/log", cut_after=3, times=3),
            id="T05 log stream breaks -> continues where it broke, no line twice",
        ),
        pytest.param(
            Fault("GET .*/log", line_delay=0.2, times=9),
            id="T06 log stream is slow -> it holds nobody up",
        ),
        pytest.param(
            Fault("GET .*/pods[?]", delay=1.5, times=2), id="T07 API is slow -> waited for"
        ),
        pytest.param(
            Fault("DELETE .*/pytorchjobs", status=500, times=2),
            id="T08 job can't be deleted at once -> tried again",
        ),
    ],
)
def test_a_bad_moment_of_the_api_costs_time_only(cluster, launch, good, capfd, fault):
    cluster.server.faults.add(fault)
    launch(job_of(good))
    assert fault.hits
    created = [line for line in cluster.server.requests if line.startswith("POST")]
    assert len(created) <= 1 + fault.hits
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("step=")]
    if not fault.line_delay:
        assert lines == ALL_STEPS


def test_t09_api_server_restarts_during_training_and_nothing_is_lost(cluster, launch, good, capfd):
    def restart():
        wait_for_line(cluster, "step=3")
        with cluster.server.outage():
            time.sleep(1)

    with meanwhile(restart):
        launch(job_of(good))
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("step=")]
    assert lines == ALL_STEPS


def test_t10_api_stays_away_until_the_deadline_then_the_next_try_takes_the_job_over(
    cluster, launch, good, monkeypatch
):
    for module in ("job_launcher", "job_pods"):
        monkeypatch.setattr(f"polarmask_components.training.{module}.call_api", impatient)

    gave_up = threading.Event()

    def vanish():
        wait_for_line(cluster, "step=3")
        with cluster.server.outage():
            gave_up.wait(60)

    with meanwhile(vanish):
        with pytest.raises(ClusterError, match="gave no answer for 2 s"):
            launch(job_of(good))
        gave_up.set()
    assert cluster.server.get("PyTorchJob", NAME)
    launch(job_of(good))
    assert len([line for line in cluster.server.requests if line.startswith("POST")]) == 1


def impatient(call, *args, **options):
    return call_api(call, *args, **{**options, "deadline_seconds": 2.0})


def test_t11_training_that_always_fails_is_given_up_with_exit_codes_and_last_words(cluster, launch):
    job = job_of(fails("RuntimeError: the GPU fell off the bus", 7), settings={"max_restarts": 1})
    with pytest.raises(LaunchError) as caught:
        launch(job)
    message = str(caught.value)
    assert f"{NAME}-master-0 ended with exit code 7 (Error)" in message
    assert "| RuntimeError: the GPU fell off the bus" in message
    assert "failed again after 2 restarts, 1 a node (train_job.max_restarts)" in message


def test_t12_training_that_fails_once_is_started_again_in_place(cluster, launch, good):
    launch(job_of(ONCE.format("sys.exit(1)") + good))


def test_t13_killed_process_is_started_again(cluster, launch, good):
    def kill():
        wait_for_line(cluster, "step=5")
        cluster.kubelet.kill_pod(f"{NAME}-master-0")

    with meanwhile(kill):
        launch(job_of(good))


def test_t14_node_that_vanishes_is_replaced_by_another(cluster, launch, good):
    def lose():
        wait_for_line(cluster, "step=5")
        cluster.kubelet.lose_node(cluster.server.get("Pod", f"{NAME}-master-0")["spec"]["nodeName"])

    with meanwhile(lose):
        launch(job_of(good))
    assert cluster.server.logs.text(f"{NAME}-master-0").count("step=1\n") == 2


def test_t15_training_out_of_memory_names_the_parameter_that_gives_more(cluster, launch):
    job = job_of(FOREVER, nodes=1, settings={"max_restarts": 0})

    def kill():
        wait_for_line(cluster, "step=1")
        cluster.kubelet.kill_pod(f"{NAME}-master-0", reason="OOMKilled")

    with meanwhile(kill), pytest.raises(LaunchError) as caught:
        launch(job)
    assert "exit code 137 (OOMKilled); raise train_job.memory" in str(caught.value)


def test_t16_setting_that_can_never_work_ends_the_job_at_the_first_try(cluster, launch):
    with pytest.raises(LaunchError, match=r"(?s)another try would not help.*optim\.lr is too high"):
        launch(job_of(fails("optim.lr is too high", 2)))


def test_t17_image_that_is_not_there_is_named_with_its_parameter(cluster, launch):
    cluster.kubelet.images = {}
    with pytest.raises(LaunchError, match=r"can't start: .*trainer:1.*change train_job\.image"):
        launch(job_of(FOREVER))


def test_t18_secret_that_is_not_there_is_named_with_its_parameter(cluster, launch):
    job = job_of(FOREVER, settings={"secret": "storage"})
    with pytest.raises(LaunchError, match=r'secret "storage" not found; change train_job\.secret'):
        launch(job)


def test_t19_gpus_that_no_node_has_end_the_wait_in_words(cluster, launch):
    job = job_of(FOREVER, settings={"gpus_per_node": 8, "start_timeout_minutes": 0.02})
    with pytest.raises(LaunchError) as caught:
        launch(job)
    assert "did not start in 0.02 minutes (train_job.start_timeout_minutes)" in str(caught.value)
    assert "Unschedulable: 0/2 nodes are available: Insufficient nvidia.com/gpu" in str(
        caught.value
    )


def test_t20_queue_that_never_admits_the_job_is_named(cluster, launch):
    job = job_of(FOREVER, settings={"queue": "spare", "start_timeout_minutes": 0.02})
    with pytest.raises(LaunchError, match=r"the queue 'spare' \(train_job\.queue\)"):
        launch(job)


def test_t21_training_that_hangs_ends_at_its_deadline(cluster, launch):
    job = job_of(FOREVER, settings={"deadline_hours": 2 / 3600})
    with pytest.raises(LaunchError, match=r"deadline \(train_job\.deadline_hours\)"):
        launch(job)


def test_t22_job_that_is_deleted_by_hand_is_a_failure(cluster, launch):
    def delete():
        wait_for_line(cluster, "step=1")
        cluster.server.delete("PyTorchJob", NAME)

    with meanwhile(delete), pytest.raises(LaunchError, match="was deleted while it trained"):
        launch(job_of(FOREVER))


def test_t23_success_without_a_result_is_a_failure(cluster, launch):
    with pytest.raises(LaunchError, match="succeeded, but left no result in s3://bucket"):
        launch(job_of("print('done')"))


def test_t24_failed_job_of_an_earlier_try_is_replaced(cluster, launch, good):
    cluster.server.create("PyTorchJob", manifest_of(job_of(good)))
    failed = {"type": "Failed", "status": "True", "message": "earlier"}
    status = {"conditions": [failed], "completionTime": "2026-01-01T00:00:00Z"}
    cluster.server.update("PyTorchJob", NAME, lambda obj: obj.update(status=status), status=True)
    launch(job_of(good))


def test_t25_job_of_the_same_run_with_other_settings_is_refused_and_left_alone(
    cluster, launch, good
):
    cluster.server.create("PyTorchJob", manifest_of(job_of(FOREVER, flags=("--set", "seed=1"))))
    with pytest.raises(LaunchError, match=r"with another spec; delete it \(kubectl -n ml"):
        launch(job_of(good))
    assert cluster.server.get("PyTorchJob", NAME)
    cluster.server.delete("PyTorchJob", NAME)


def test_t26_old_job_that_does_not_go_away_is_named(cluster, launch, good):
    old = manifest_of(job_of(good))
    old["metadata"]["finalizers"] = ["example.com/stuck"]
    cluster.server.create("PyTorchJob", old)
    cluster.server.delete("PyTorchJob", NAME)
    with pytest.raises(LaunchError, match=r"does not go away in 1 s: .*finalizers"):
        launch(job_of(good), replace(PACE, removal=1.0))
    cluster.server.update("PyTorchJob", NAME, lambda obj: obj["metadata"].pop("finalizers"))


def test_t27_finished_job_that_was_removed_meanwhile_counts_by_its_result(cluster, launch, good):
    def finish():
        wait_for_line(cluster, "step=19")
        cluster.server.delete("PyTorchJob", NAME)

    with meanwhile(finish):
        launch(job_of(good.replace("\nfor", "\n" + good.splitlines()[-1] + "\nfor")))
    launch(job_of(good))
    assert len([line for line in cluster.server.requests if line.startswith("POST")]) == 1


def test_t28_cluster_without_training_operator_has_its_own_error(tmp_path, launch, cluster):
    cluster.server.delete("CustomResourceDefinition", "pytorchjobs.kubeflow.org", "")
    with pytest.raises(LaunchError, match=r"knows no PyTorchJob .* install training-operator v1"):
        launch(job_of(FOREVER))


def test_t29_namespace_that_is_not_there_is_named(cluster, launch, tmp_path, monkeypatch):
    job = job_of(FOREVER, namespace="nowhere")
    with pytest.raises(
        ClusterError, match=r"(?s)namespace \"nowhere\".*bind the Role polarmask-pipeline"
    ):
        launch(job)  # a Role covers its own namespace only
    kubeconfig = cluster.server.write_kubeconfig(tmp_path / "administrator")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    with pytest.raises(LaunchError, match=r"nowhere.* train_job\.namespace has to exist"):
        launch(job)


def test_t30_error_for_a_service_account_without_rights_names_the_role(tmp_path, monkeypatch):
    with KubeServer(rules={"nobody": []}) as server:
        kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", account="nobody")
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        job = job_of(FOREVER)
        with pytest.raises(ClusterError, match=r"(?s)refused: .*nobody.*pytorchjobs.*Role polarm"):
            run_job(job, Storage(job, tmp_path / "result"), connect(), pace=PACE)


def test_t31_operator_that_does_not_run_has_its_own_error(tmp_path, monkeypatch):
    with KubeServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        job = job_of(FOREVER, settings={"start_timeout_minutes": 0.01})
        with pytest.raises(LaunchError, match="no controller picked it up"):
            run_job(job, Storage(job, tmp_path / "result"), connect(), pace=PACE)
        assert server.list("PyTorchJob") == []


def test_t41_worker_whose_init_image_is_missing_ends_the_wait_though_the_master_runs(
    cluster, launch
):
    cluster.kubelet.images = {"trainer:1": []}
    with pytest.raises(LaunchError) as caught:
        launch(job_of(FOREVER))
    message = str(caught.value)
    assert f"does not start: pod {NAME}-worker-0 can't start: container init-pytorch: Im" in message
    assert "--pytorch-init-container-image" in message
    assert f"pod {NAME}-master-0: Running" in message


def test_t42_worker_that_pod_security_refuses_is_the_reason_and_not_a_missing_operator(
    cluster, launch
):
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.server.update("Namespace", "ml", lambda obj: obj["metadata"].update(labels=restricted))
    with pytest.raises(LaunchError) as caught:
        launch(job_of(FOREVER))
    message = str(caught.value)
    assert "does not start: its pods are refused: FailedCreatePod: Error creating: pods" in message
    assert 'violates PodSecurity "restricted:latest"' in message
    assert "--pytorch-init-container-template-file" in message
    assert "is training-operator running" not in message


def test_t43_worker_without_room_ends_the_wait_though_the_master_runs(cluster, launch):
    amounts = {"allocatable": {"nvidia.com/gpu": "1"}}
    cluster.server.update("Node", "node-a", lambda obj: obj["status"].update(amounts), status=True)
    job = job_of(FOREVER, settings={"gpus_per_node": 1, "start_timeout_minutes": 0.05})
    with pytest.raises(LaunchError) as caught:
        launch(job)
    assert "(train_job.start_timeout_minutes): 1 of 2 nodes started" in str(caught.value)
    assert "Insufficient nvidia.com/gpu" in str(caught.value)


def test_t44_quota_without_room_is_the_reason_at_the_end_of_the_wait(cluster, launch):
    put_quota(cluster, 1)
    with pytest.raises(LaunchError) as caught:
        launch(job_of(FOREVER, settings={"start_timeout_minutes": 0.03}))
    assert "(train_job.start_timeout_minutes): its pods are refused: FailedC" in str(caught.value)
    assert "exceeded quota: pods" in str(caught.value)


def test_t45_quota_that_gets_room_lets_the_job_train(cluster, launch, good):
    put_quota(cluster, 1)

    def make_room():
        cluster.server.wait_for(lambda: any("quota" in each for each in cluster.server.events()))
        cluster.server.delete("ResourceQuota", "pods")

    with meanwhile(make_room):
        launch(job_of(good))


def put_quota(cluster, pods):
    quota = {"metadata": {"name": "pods"}, "spec": {"hard": {"pods": str(pods)}}}
    cluster.server.create("ResourceQuota", quota)


def test_t46_elastic_job_ends_with_the_worker_that_is_left_when_another_can_not_come_back(
    cluster, launch, result, caplog
):
    def break_one():
        cluster.server.wait_for(
            lambda: all("up" in cluster.server.logs.text(f"{NAME}-worker-{i}") for i in (0, 1)), 60
        )
        cluster.kubelet.images = {}
        cluster.kubelet.kill_pod(f"{NAME}-worker-1")
        cluster.server.wait_for(lambda: "training continues on the other" in caplog.text, 60)
        cluster.kubelet.kill_pod(f"{NAME}-worker-0", signal.SIGUSR1)

    script = f"""
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: ({result}, sys.exit(0)))
print("up", flush=True)
while True:
    signal.pause()
"""
    with meanwhile(break_one):
        launch(job_of(script, min_nodes=1))


_LAUNCHER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_training_faults import *
job = job_of(FOREVER)
print("up", flush=True)
run_job(job, Storage(job, Path("none")), connect(), pace=PACE)
"""


@pytest.fixture
def launcher(cluster):
    """A launcher as a process; each call starts another one."""
    folder = Path(__file__).parent
    script = _LAUNCHER.format(paths=[str(folder), str(folder.parent)])
    started = []

    def start():
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_t32_launcher_that_is_asked_to_end_deletes_its_job(cluster, launcher, number):
    process = launcher()
    wait_for_line(cluster, "step=1", timeout=60)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_t33_launcher_that_is_killed_finds_its_job_again(cluster, launcher):
    process = launcher()
    wait_for_line(cluster, "step=1", timeout=60)
    uid = cluster.server.get("PyTorchJob", NAME)["metadata"]["uid"]
    process.kill()
    process.communicate()
    again = launcher()
    gets = len(cluster.server.requests)
    cluster.server.wait_for(lambda: len(cluster.server.requests) > gets + 6, 60)
    assert cluster.server.get("PyTorchJob", NAME)["metadata"]["uid"] == uid
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=20)
