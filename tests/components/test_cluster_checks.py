"""What preflight finds, with the shipped Role enforced by an API server and a real S3 server."""

import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import yaml
from kubernetes.config import kube_config

from data_repository import make_data_repository
from kube.faults import Fault
from kube.server import KubeServer
from polarmask_components.checks import cluster_checks
from polarmask_components.checks.cluster_access import (
    DEPLOYMENT_ACCESS,
    NAMESPACE_ACCESS,
    NODES_ACCESS,
    OWN_POD_ACCESS,
    QUOTA_ACCESS,
    Access,
    training_access,
)
from polarmask_components.checks.cluster_checks import check_cluster
from polarmask_components.checks.job_kind import with_job_kind
from polarmask_components.checks.planned_run import PlannedRun
from polarmask_components.checks.run_checks import check_run
from polarmask_components.deploy.serving_device import serving_device
from polarmask_components.errors import MissingObjectsError, PreflightError, StorageError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.parameters.step_resources import StepResources
from polarmask_components.parameters.train_on import AUTO, PYTORCHJOB, TRAINJOB
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.provenance.data_version import check_reachable
from polarmask_components.training.job_identity import JOB_RESOURCES
from training_jobs import training_request

PIPELINE = Path(__file__).parents[2] / "k8s" / "base" / "pipeline"
TARGET = "kubernetes://ml/polarmask"
GPUS = JobSettings(gpus_per_node=8)
REQUIRED_ACCESS = {*training_access(PYTORCHJOB), *DEPLOYMENT_ACCESS, OWN_POD_ACCESS}


def rules_in(name):
    documents = yaml.safe_load_all((PIPELINE / name).read_text())
    return [rule for each in documents for rule in each.get("rules", [])]


@pytest.fixture(scope="module")
def cluster():
    """A cluster with all that a run needs, and our service account in it."""
    with KubeServer(rules={"polarmask-pipeline": rules_in("role.yaml")}) as server:
        container = {"name": "torchserve", "image": "polarmask-serving:1"}
        labels = {"app": "polarmask"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        spec = {"selector": {"matchLabels": labels}, "template": template}
        server.create("Deployment", {"metadata": {"name": "polarmask"}, "spec": spec})
        ports = [{"port": 80, "targetPort": 8080}]
        spec = {"selector": labels, "ports": ports, "clusterIP": "127.9.9.9"}
        server.create("Service", {"metadata": {"name": "polarmask"}, "spec": spec})
        yield server


@pytest.fixture
def enter(monkeypatch, tmp_path):
    """Lead this process to a cluster, as a service account or the administrator."""

    def enter(server, account=""):
        path = server.write_kubeconfig(tmp_path / "kubeconfig", account)
        # The client reads KUBECONFIG when it is imported.
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))

    return enter


@pytest.fixture
def as_pipeline(cluster, enter):
    """Lead this process to the cluster as the pipeline's service account."""
    enter(cluster, "polarmask-pipeline")
    return cluster


def use(data_repository, **changes):
    """Plan a run that trains as a job if one is given, else in the step."""
    training = TrainingRequest(preset="tiny")
    if "job" in changes:
        names = {"job", "on", "nodes", "min_nodes", "storage"} & set(changes)
        training = training_request(
            **{"storage": "s3://polarmask/training"} | {name: changes.pop(name) for name in names}
        )
    registry = "s3://polarmask/registry" if "target" in changes else "runs/shared/registry"
    planned = {"revision": "main", "registry": registry} | changes
    planned.setdefault("storage_secret", "polarmask-s3")
    return PlannedRun(training_request=training, repository=str(data_repository), **planned)


def problems(plan):
    with pytest.raises(PreflightError) as caught:
        check_cluster(plan)
    first, *lines = str(caught.value).splitlines()
    assert first == "this run would be stopped by:"
    assert all(line.startswith("- ") for line in lines)
    return lines


def everything(data_repository, bucket):
    places = {"registry": f"s3://{bucket}/registry", "storage": f"s3://{bucket}/training"}
    job = JobSettings(image="example.org/polarmask-trainer:1.2.3")
    return use(data_repository, job=job, nodes=2, target=TARGET, **places)


def test_a_cluster_that_has_all_passes_in_seconds(as_pipeline, data_repository, s3_environment):
    began = time.monotonic()
    assert check_cluster(everything(data_repository, "polarmask")) == []
    assert time.monotonic() - began < 20  # DVC starts slowly, all the rest is one second


def test_what_a_trial_lacks_is_reported(as_pipeline, data_repository, s3_environment):
    lines = problems(replace(everything(data_repository, "polarmask"), trial={"copies": 0.1}))
    for kind in ("deployments", "services", "configmaps"):
        [line] = [each for each in lines if f" {kind}" in each]
        assert line.startswith("- deploy_trial: ")
        assert "bind the Role polarmask-trial: kubectl -n ml create rolebinding" in line
        assert line.endswith("apply k8s/components/trial")


def test_all_failures_are_reported_at_once(as_pipeline, data_repository, s3_environment):
    job = JobSettings(namespace="other", image="polarmask-trainer:latest")
    plan = use(
        data_repository,
        job=job,
        target="kubernetes://ml/no-such",
        registry="s3://no-such-bucket/registry",
        storage="runs/training",
        revision="no-such-branch",
    )
    lines = problems(plan)
    for expected_text in (
        "no revision 'no-such-branch'",
        "s3://no-such-bucket/registry: ",
        "train_storage: 'runs/training' is no place in object storage",
        "namespace other: no right to create, get, delete pytorchjobs.kubeflow.org; list pods; get "
        "pods/log; list events for system:serviceaccount:ml:polarmask-pipeline; bind the Role "
        "polarmask-pipeline: kubectl -n other create rolebinding polarmask-pipeline-ml-polarmask-"
        "pipeline --role polarmask-pipeline --serviceaccount ml:polarmask-pipeline",
        "polarmask-trainer:latest names no version",
        "namespace ml: no right to get, patch deployments.apps",  # the Role names one Deployment
        "; get services",
    ):
        assert sum(expected_text in line for line in lines) == 1, expected_text


# access


def granted_in(rules):
    return {
        Access(verb, resource, group)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_shipped_role_is_what_is_checked_and_nothing_more():
    assert granted_in(rules_in("role.yaml")) == {
        *REQUIRED_ACCESS,
        *training_access(TRAINJOB),
        NAMESPACE_ACCESS,
        QUOTA_ACCESS,
    }


def test_the_shipped_cluster_role_grants_what_preflight_may_ask():
    assert NODES_ACCESS in granted_in(rules_in("cluster-role.yaml"))


@pytest.mark.parametrize("lacking", sorted(REQUIRED_ACCESS, key=str), ids=str)
def test_each_right_that_lacks_is_named(cluster_alone, enter, tmp_path, lacking):
    rules = [
        {"apiGroups": [each.group], "resources": [each.resource], "verbs": [each.verb]}
        for each in REQUIRED_ACCESS - {lacking}
    ]
    with KubeServer(rules={"polarmask-pipeline": rules}) as server:
        enter(server, "polarmask-pipeline")
        lines = problems(use(tmp_path, job=JobSettings(), target=TARGET))
    named = f"no right to {lacking.verb} {lacking.kind} for "
    assert any(named in line for line in lines)


# the cluster


@pytest.fixture
def no_data_check(monkeypatch):
    monkeypatch.setattr(cluster_checks, "check_reachable", lambda *_: None)


@pytest.fixture
def cluster_alone(monkeypatch, no_data_check):
    """Look at nothing but the cluster."""
    monkeypatch.setattr(cluster_checks, "_check_storage", lambda *_, **__: ())


def test_cluster_that_is_away_is_one_line(cluster_alone, enter, monkeypatch, tmp_path):
    with KubeServer() as server:
        enter(server)
    monkeypatch.setattr(cluster_checks, "DEADLINE_SECONDS", 0.5)
    (line,) = problems(use(tmp_path, job=JobSettings(), target=TARGET))
    assert "the Kubernetes API gave no answer" in line


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    none = str(tmp_path / "none")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", none)


def test_no_cluster_at_all_is_one_line(cluster_alone, nowhere, tmp_path):
    (line,) = problems(use(tmp_path, job=JobSettings()))
    assert "no Kubernetes cluster" in line


def test_a_run_that_needs_no_cluster_asks_none(cluster_alone, nowhere, tmp_path):
    assert check_cluster(use(tmp_path, target="runs/shared/server")) == []


def test_a_busy_cluster_is_asked_again(as_pipeline, cluster_alone, tmp_path):
    busy = as_pipeline.faults.add(Fault("selfsubjectaccessreviews", status=503, times=2))
    dropped = as_pipeline.faults.add(Fault("GET /apis/", drop=True))
    assert check_cluster(use(tmp_path, job=JobSettings(), target=TARGET)) == []
    assert (busy.hits, dropped.hits) == (2, 1)


def test_missing_operator_is_named(cluster_alone, enter, tmp_path):
    with KubeServer() as server:
        server.delete("CustomResourceDefinition", "pytorchjobs.kubeflow.org")
        enter(server)
        (line,) = problems(use(tmp_path, job=JobSettings()))
    assert "serves no PyTorchJob of kubeflow.org/v1; install" in line


@pytest.fixture
def cluster_with(cluster_alone, enter):
    """A function that leads this process to a cluster with these kinds of training jobs alone."""
    with ExitStack() as stack:

        def make(*kinds):
            server = stack.enter_context(KubeServer())
            for on in JOB_RESOURCES.keys() - set(kinds):
                resource = JOB_RESOURCES[on]
                name = f"{resource.plural}.{resource.group}"
                server.delete("CustomResourceDefinition", name)
            enter(server)
            return server

        yield make


def test_a_trainjob_needs_its_runtime(cluster_with, tmp_path):
    server = cluster_with(TRAINJOB)
    plan = use(tmp_path, job=JobSettings(), on=TRAINJOB, nodes=2)
    (line,) = problems(plan)
    assert "namespace ml: no TrainingRuntime polarmask-training; apply it: kubectl" in line
    runtime = PIPELINE.parents[1] / "components/trainer/runtime.yaml"
    server.create("TrainingRuntime", yaml.safe_load(runtime.read_text()))
    assert check_cluster(plan) == []


@pytest.mark.parametrize(
    ("kinds", "changes", "chosen"),
    [
        pytest.param([PYTORCHJOB, TRAINJOB], {}, PYTORCHJOB, id="both"),
        pytest.param([TRAINJOB], {}, TRAINJOB, id="the-successor"),
        pytest.param([TRAINJOB], {"nodes": 2, "min_nodes": 1}, AUTO, id="elastic"),
        pytest.param([], {}, AUTO, id="none"),
    ],
)
def test_auto_takes_the_kind_that_the_cluster_has(cluster_with, kinds, changes, chosen):
    cluster_with(*kinds)
    assert with_job_kind(training_request(on=AUTO, **changes)).on == chosen
    assert with_job_kind(training_request(on=PYTORCHJOB)).on == PYTORCHJOB


@pytest.mark.parametrize(
    ("kinds", "plan", "expected_text"),
    [
        ([], {"on": AUTO}, "serves no PyTorchJob and no TrainJob; install training-operator v1 or"),
        ([TRAINJOB], {"on": PYTORCHJOB}, "install training-operator v1, or set train_on=trainjob"),
        ([PYTORCHJOB], {"on": TRAINJOB}, "no TrainJob of trainer.kubeflow.org/v1alpha1; install"),
        (
            [TRAINJOB],
            {"on": AUTO, "nodes": 2, "min_nodes": 1},
            "train_on=auto, and the cluster has TrainJob only: train_min_nodes is 1",
        ),
    ],
)
def test_a_kind_of_job_that_cannot_be_had_is_named(
    cluster_with, tmp_path, kinds, plan, expected_text
):
    cluster_with(*kinds)
    (line,) = problems(use(tmp_path, job=JobSettings(), **plan))
    assert expected_text in line


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_missing_server_is_named(cluster_alone, enter, tmp_path, kind):
    with KubeServer() as server:
        spec = {"selector": {"app": "x"}, "ports": [{"port": 80}]}
        if kind == "Deployment":
            server.create("Service", {"metadata": {"name": "polarmask"}, "spec": spec})
        enter(server)
        lines = problems(use(tmp_path, target=TARGET))
    assert any(f"no {kind} polarmask in namespace ml; apply k8s/" in line for line in lines)


@pytest.mark.parametrize("target", ["kubernetes:/ml/a", "kubernetes//ml/a", "~/server"])
def test_a_misspelt_target_is_refused(tmp_path, target):
    with pytest.raises(StorageError, match=r"write .* kubernetes://NAMESPACE/NAME"):
        check_run(use(tmp_path, target=target))


@pytest.mark.parametrize("target", ["kubernetes://", "kubernetes://ml", "kubernetes://ml/a/b"])
def test_target_that_names_no_deployment_is_reported(as_pipeline, cluster_alone, tmp_path, target):
    (line,) = problems(use(tmp_path, target=target))
    assert "give kubernetes://NAMESPACE/NAME" in line


# GPUs


def test_the_device_that_serves_is_that_of_the_deployment(as_pipeline):
    assert serving_device("runs/shared/server") == ("", "")  # what the machine has
    assert serving_device(TARGET) == ("cpu", "")

    def limit(name):
        def change(deployment):
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            container["resources"] = {"limits": {"cpu": "2", name: "1"}}

        as_pipeline.update("Deployment", "polarmask", change)
        return serving_device(TARGET)

    assert limit("nvidia.com/gpu") == ("cuda", "nvidia.com/gpu")
    assert limit("nvidia.com/mig-3g.40gb") == ("cuda", "nvidia.com/mig-3g.40gb")
    assert limit("ephemeral-storage") == ("cpu", "")


@pytest.fixture
def gpu_cluster(enter, cluster_alone):
    """A cluster whose nodes have 8 and 4 GPUs; all may be listed."""
    with KubeServer() as server:
        for name, number, labels in (("big", 8, {"gpu": "h200"}), ("small", 4, {})):
            node = {"metadata": {"name": name, "labels": labels}, "spec": {}}
            server.create("Node", node)
            status = {"allocatable": {"cpu": "64", "nvidia.com/gpu": str(number)}}
            server.update(
                *("Node", name), lambda obj, new=status: obj.update(status=new), status=True
            )
        enter(server)
        yield server


@pytest.mark.parametrize(
    ("job", "nodes", "room"),
    [
        pytest.param(JobSettings(gpus_per_node=4), 3, None, id="all-fit"),
        pytest.param(JobSettings(gpus_per_node=4), 4, 3, id="one-too-many"),
        pytest.param(GPUS, 1, None, id="one-big"),
        pytest.param(GPUS, 2, 1, id="two-big"),
        pytest.param(JobSettings(gpus_per_node=1, gpu_resource="amd.com/gpu"), 1, 0, id="other"),
        pytest.param(
            JobSettings(gpus_per_node=4, node_selector={"gpu": "h200"}), 3, 2, id="selected"
        ),
        pytest.param(JobSettings(), 100, None, id="none-wanted"),
    ],
)
def test_gpus_that_no_node_has_are_reported(gpu_cluster, tmp_path, job, nodes, room):
    plan = use(tmp_path, job=job, nodes=nodes)
    if room is None:
        assert check_cluster(plan) == []
        return
    (line,) = problems(plan)
    assert f"wants {nodes} pods with {job.gpus_per_node} {job.gpu_resource} each" in line
    assert f"hold {room};" in line


@pytest.mark.parametrize(
    ("resources", "expected_text"),
    [
        pytest.param({"eval_gpus": 8, "label_device": "cuda"}, None, id="all-fit"),
        pytest.param({"eval_gpus": 9}, "evaluation wants 1 pods with 9 nvidia.com/gpu", id="eval"),
        pytest.param({"label_device": "cuda"}, "a label pod wants 1 pods with 1 amd", id="label"),
    ],
)
def test_gpus_of_steps_that_no_node_has_are_reported(
    gpu_cluster, tmp_path, resources, expected_text
):
    gpu = "amd.com/gpu" if expected_text and "amd" in expected_text else "nvidia.com/gpu"
    plan = use(tmp_path, job=JobSettings(gpu_resource=gpu), resources=StepResources(**resources))
    if expected_text is None:
        assert check_cluster(plan) == []
        return
    (line,) = problems(plan)
    assert expected_text in line
    assert f"change {next(iter(resources))}, add nodes" in line


def test_a_cordoned_node_does_not_count(gpu_cluster, tmp_path):
    gpu_cluster.update("Node", "big", lambda node: node.update(spec={"unschedulable": True}))
    (line,) = problems(use(tmp_path, job=GPUS))
    assert "hold 0;" in line


def test_nodes_that_may_not_be_listed_are_a_note(as_pipeline, cluster_alone, tmp_path):
    (note,) = check_cluster(use(tmp_path, job=GPUS))
    assert "whether nodes have nvidia.com/gpu is not known" in note


# pod security


@pytest.fixture
def restricted(cluster):
    """Let only restricted pods into the namespace for one test."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.update("Namespace", "ml", lambda obj: obj["metadata"].update(labels=labels))
    yield
    cluster.update("Namespace", "ml", lambda obj: obj["metadata"].pop("labels"))


def test_a_master_in_a_restricted_namespace_is_a_note(
    as_pipeline, cluster_alone, restricted, tmp_path
):
    (note,) = check_cluster(use(tmp_path, job=JobSettings(), nodes=2))
    assert "needs a --pytorch-init-container-template-file" in note
    assert check_cluster(use(tmp_path, job=JobSettings(), nodes=2, min_nodes=2)) == []


def test_a_master_elsewhere_is_none(as_pipeline, cluster_alone, tmp_path):
    assert check_cluster(use(tmp_path, job=JobSettings(), nodes=2)) == []


# quotas


@pytest.fixture
def quota(cluster):
    """Give the namespace a quota for one test."""

    def give(hard, used=None, **spec):
        body = {"metadata": {"name": "team"}, "spec": {"hard": hard, **spec}}
        cluster.create("ResourceQuota", body)
        status = {"hard": hard, "used": used or {}}
        cluster.update(
            *("ResourceQuota", "team"), lambda obj: obj.update(status=status), status=True
        )

    yield give
    cluster.delete("ResourceQuota", "team")


@pytest.mark.parametrize(
    ("hard", "expected_text"),
    [
        ({"requests.nvidia.com/gpu": "8"}, "allows requests.nvidia.com/gpu of 8"),
        ({"requests.cpu": "7"}, "allows requests.cpu of 7, and training wants 2 x 4"),
        ({"limits.memory": "31Gi"}, "allows limits.memory of 31Gi, and training wants 2 x 16Gi"),
        ({"pods": "1"}, "allows pods of 1"),
    ],
)
def test_quota_that_can_never_hold_the_job_is_reported(
    as_pipeline, cluster_alone, quota, tmp_path, hard, expected_text
):
    quota(hard)
    (line,) = problems(use(tmp_path, job=GPUS, nodes=2))
    assert "quota team of namespace ml" in line
    assert expected_text in line


def test_quota_that_is_used_by_others_now_is_a_note(as_pipeline, cluster_alone, quota, tmp_path):
    quota({"requests.cpu": "8", "pods": "10"}, used={"requests.cpu": "4500m", "pods": "1"})
    (note,) = check_cluster(use(tmp_path, job=JobSettings(), nodes=2))
    assert "has 4500m of 8 requests.cpu in use; training waits until" in note


def test_quota_of_other_pods_does_not_matter(as_pipeline, cluster_alone, quota, tmp_path):
    quota({"pods": "0"}, scopes=["BestEffort"])
    assert check_cluster(use(tmp_path, job=JobSettings())) == []


# object storage


def objects_left():
    listed = boto3.client("s3").list_objects_v2(Bucket="polarmask", Prefix="probed/")
    return listed.get("KeyCount", 0)


def test_bucket_is_probed_and_nothing_stays(no_data_check, s3_environment, tmp_path):
    assert check_cluster(use(tmp_path, registry="s3://polarmask/probed")) == []
    assert objects_left() == 0


def test_server_that_ignores_conditions_is_reported(
    no_data_check, s3_environment, tmp_path, monkeypatch
):
    client = boto3.client("s3")

    def put_whatever(**arguments):
        known = {name: arguments[name] for name in ("Bucket", "Key", "Body")}
        return client.put_object(**known)

    careless = type("Careless", (), {"put_object": staticmethod(put_whatever)})()
    careless.get_object, careless.delete_object = client.get_object, client.delete_object
    with monkeypatch.context() as patch:
        patch.setattr(boto3, "client", lambda *_, **__: careless)
        lines = problems(use(tmp_path, registry="s3://polarmask/probed"))
    assert [word for line in lines for word in line.split() if word.startswith("If")] == [
        "IfNoneMatch",
        "IfMatch",
    ]
    assert objects_left() == 0


def test_wrong_credentials_are_reported(no_data_check, s3_environment, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
    (line,) = problems(use(tmp_path, registry="s3://polarmask/probed"))
    assert "credentials in the environment" in line
    assert "from the Secret polarmask-s3 (storage_secret) of namespace" in line


def test_a_secret_that_the_namespace_of_the_steps_lacks_is_named(
    no_data_check, as_pipeline, s3_environment, tmp_path, monkeypatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    (line,) = problems(use(tmp_path, registry="s3://polarmask/probed"))
    assert "Unable to locate credentials" in line
    assert line.endswith(
        "of namespace ml: kubectl -n ml create secret generic polarmask-s3 "
        "--from-env-file=read-write.env"
    )


# data


@pytest.fixture
def repository(tmp_path):
    """A checkout of its own, because tests break it."""
    (tmp_path / "data").mkdir()
    return make_data_repository(tmp_path / "data")


def test_data_in_the_remote_is_enough(repository):
    shutil.rmtree(repository / ".dvc" / "cache")
    check_reachable(str(repository), "v1")


def test_a_file_that_was_not_pushed_is_reported(repository):
    shutil.rmtree(repository / ".dvc" / "cache")
    png = next((repository / "data" / "images").iterdir()).read_bytes()
    objects = [path for path in (repository / ".dvc" / "bundled").rglob("*") if path.is_file()]
    next(path for path in objects if path.read_bytes() == png).unlink()
    with pytest.raises(MissingObjectsError, match="run `dvc push`"):
        check_reachable(str(repository), "main")


def test_data_that_cache_and_remote_lack_is_reported(repository):
    for place in ("bundled", "cache"):
        shutil.rmtree(repository / ".dvc" / place)
    with pytest.raises(MissingObjectsError, match=r"data of v1 .*run `dvc push`"):
        check_reachable(str(repository), "v1")


def test_remote_that_cannot_be_reached_is_reported(repository, s3_environment):
    shutil.rmtree(repository / ".dvc" / "cache")
    config = repository / ".dvc" / "config"
    config.write_text(config.read_text().replace("url = bundled", "url = s3://no-such-bucket/x"))
    add = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*add, "commit", "--quiet", "--all", "--message", "moved"], check=True)
    with pytest.raises(MissingObjectsError, match="bucket of the DVC remote does not exist"):
        check_reachable(str(repository), "main")
