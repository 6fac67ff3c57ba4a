"""What can break while a model goes into service in a cluster, and what comes of it.

Pods run as processes and fetch from a real S3 server; a stand-in serves in the place of
TorchServe. After each fault the registry, the Deployment and who answers agree, and nothing of
the failed try is left.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import boto3
import pytest

from factories import make_tiny_coco
from keep_alive import KeepAliveClient, keep_asking
from kube.faults import Fault
from polarmask_components.deploy import cluster_deployment
from polarmask_components.deploy.cluster_state import RETURN_TO, VERSION
from polarmask_components.errors import (
    ClusterError,
    ConflictError,
    RegistryError,
    RollOutError,
    UnusableModelError,
)
from polarmask_components.registry.registry import open_registry
from serving_cluster import TARGET, ServingCluster, make_model

pytestmark = pytest.mark.faults
LIMIT_SECONDS = 90


@pytest.fixture(scope="module")
def s3(s3_server):
    """Lead this process to the S3 server as long as the module's cluster lives."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        yield s3_server


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    data = make_tiny_coco(tmp_path_factory.mktemp("data"), images=1, val_images=1)
    return (data / "images" / "val_000.png").read_bytes()


@pytest.fixture(scope="module")
def shared(s3, image):
    with ServingCluster(s3, image) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared, monkeypatch, tmp_path):
    """A cluster in which a champion answers; a fault changes nothing of that."""
    shared.lead_here(monkeypatch)
    if shared.registry.champion_version() is None:
        shared.deploy(make_model(tmp_path / "first", seed=1))
    yield shared
    shared.server.faults.clear()
    assert_settled(shared)


@pytest.fixture
def empty(s3, image, monkeypatch):
    """A cluster in which no model was deployed yet."""
    with ServingCluster(s3, image) as cluster:
        cluster.lead_here(monkeypatch)
        yield cluster


@pytest.fixture
def candidate(tmp_path, request):
    """A model that nobody saw before, without faults."""
    return make_model(tmp_path / "candidate", seed=2, test=request.node.name)


def assert_settled(cluster):
    """Registry, Deployment and answers agree; nothing is undecided, no pod is left over."""
    champion = cluster.registry.champion_version()
    deployment = cluster.deployment()
    assert deployment["spec"]["template"]["metadata"]["annotations"][VERSION] == champion
    assert RETURN_TO not in deployment["metadata"]["annotations"]
    assert cluster.answering() == champion
    cluster.server.wait_for(lambda: len(cluster.server.list("Pod")) == 1)
    assert len(cluster.process_ids()) == 2  # the server and its proxy


@contextmanager
def refused(cluster, kind, reason):
    """The block raises this and ends in time; the champion is the one before and answers again."""
    champion, started = cluster.registry.champion_version(), time.monotonic()
    with pytest.raises(kind, match=f"(?s){reason}") as caught:
        yield
    assert time.monotonic() - started < LIMIT_SECONDS
    assert cluster.registry.champion_version() == champion
    assert f"version {champion} answers again" in str(caught.value)


BAD_MODELS = {
    "D01-server-crashes": ("crashes", RollOutError, "weights are missing"),
    "D02-never-ready": ("is-never-ready", RollOutError, "no pod became ready for 6 s"),
    "D03-answers-nonsense": ("answers-nonsense", RollOutError, "JSONDecodeError"),
    "D04-answers-as-another-version": ("has-another-version", RollOutError, "not from"),
    "D05-scores-out-of-range": ("scores-out-of-range", RollOutError, "out of range"),
    "D06-fails-on-images": ("fails", RollOutError, "500"),
    "D07-hangs-on-images": ("hangs", RollOutError, "timed out"),
    "D08-dies-of-images": ("dies-of-images", RollOutError, "POST"),
}


@pytest.mark.parametrize(("behaviour", "kind", "reason"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_bad_model_is_rolled_back(cluster, tmp_path, monkeypatch, behaviour, kind, reason):
    """A model that does not load, start or answer well -> rolled back, the old one answers."""
    monkeypatch.setattr(cluster_deployment, "_SECONDS_PER_ANSWER", 3)
    bad = make_model(tmp_path / "bad", seed=3, behaviour=behaviour)
    with refused(cluster, kind, reason):
        cluster.deploy(bad)


def archives_of(cluster):
    bucket, _, prefix = urlsplit(cluster.registry.where).geturl()[5:].partition("/")
    objects = boto3.resource("s3").Bucket(bucket).objects
    found = objects.filter(Prefix=f"{prefix}/models/")
    return {each.key: each.Object() for each in found if each.key.endswith(".mar")}


def break_new_archives(cluster, change):
    """Change each new archive once the roll-out begins, before a pod asks for it."""
    known = set(archives_of(cluster))
    rolls_out = cluster.server.faults.add(Fault("PATCH .*/deployments/", delay=1.5))

    def watch():
        cluster.server.wait_for(lambda: rolls_out.hits)
        for key in set(archives_of(cluster)) - known:
            change(archives_of(cluster)[key])

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_d09_a_damaged_archive_is_not_served(cluster, candidate):
    """The archive in the store is damaged -> the pod refuses it, rolled back."""
    breaking = break_new_archives(
        cluster, lambda stored: stored.put(Body=b"x" * stored.content_length)
    )
    with refused(cluster, RollOutError, "is not what was stored"):
        cluster.deploy(candidate)
    breaking.join()
    for stored in archives_of(cluster).values():
        if stored.get()["Body"].read(1) == b"x":
            stored.delete()


def test_d10_an_archive_that_vanished_is_not_served(cluster, candidate):
    """The archive vanishes from the store -> the pod can't fetch it, rolled back."""
    breaking = break_new_archives(cluster, lambda stored: stored.delete())
    with refused(cluster, RollOutError, "does not exist"):
        cluster.deploy(candidate)
    breaking.join()


def test_d11_an_archive_of_another_size_is_noticed_before_the_roll_out(cluster, candidate):
    """Something else is stored under the archive's name -> refused, nothing was changed."""
    generation = cluster.deployment()["metadata"]["generation"]
    breaking = break_new_archives(cluster, lambda stored: stored.put(Body=b"half"))
    with refused(cluster, RollOutError, "fetch-model"):
        cluster.deploy(candidate)
    breaking.join()
    changed = cluster.deployment()["metadata"]["generation"]
    with pytest.raises(UnusableModelError, match="has 4 bytes"):
        cluster.deploy(candidate)
    assert cluster.deployment()["metadata"]["generation"] == changed > generation


def test_d12_a_failed_first_deployment_leaves_no_pod(empty, tmp_path):
    """The very first model crashes -> no champion, no pod, scaled to none again."""
    bad = make_model(tmp_path / "bad", behaviour="crashes")
    with pytest.raises(RollOutError, match="no pod served before, and none does now"):
        empty.deploy(bad)
    assert empty.registry.champion_version() is None
    assert empty.deployment()["spec"]["replicas"] == 0
    empty.server.wait_for(lambda: not empty.server.list("Pod"))
    empty.deploy(make_model(tmp_path / "good"))
    assert_settled(empty)


def when_rolling(cluster, act):
    """Do something in the background once the Deployment is set to serve another model."""
    generation = cluster.deployment()["metadata"]["generation"]

    def wait_and_act():
        cluster.server.wait_for(
            lambda: cluster.deployment()["metadata"]["generation"] > generation, 60
        )
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_d13_a_lost_promotion_is_rolled_back(cluster, candidate, tmp_path):
    """Another run promotes meanwhile -> conflict; the cluster returns to what it served."""
    before = cluster.registry.champion_version()
    with pytest.raises(ConflictError, match=f"version {before} answers again"):
        cluster.deploy(candidate, expected="of another time")
    assert cluster.registry.champion_version() == before


def test_d14_a_run_that_was_overtaken_leaves_the_other_alone(cluster, candidate):
    """Another run changes the Deployment in mid roll-out -> conflict, theirs is not undone."""

    def overtake(deployment):
        deployment["spec"]["template"]["metadata"]["annotations"][VERSION] = "theirs"

    acting = when_rolling(cluster, lambda: cluster.change(overtake))
    with pytest.raises(ConflictError, match="another run put version theirs into"):
        cluster.deploy(candidate)
    acting.join()
    cluster.deploy(cluster.registry.champion())  # the other run's business in truth


def test_d15_a_run_that_is_asked_to_end_rolls_back(cluster, tmp_path):
    """SIGTERM in mid roll-out -> rolled back before the process ends."""
    slow = make_model(tmp_path / "slow", behaviour="is-never-ready")
    acting = when_rolling(cluster, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with refused(cluster, RollOutError, "stopped by a signal"):
        cluster.deploy(slow)
    acting.join()


DEPLOY = """
import sys
from pathlib import Path
from polarmask_components.deploy.deploy import deploy
from polarmask_components.registry.registry import open_registry
version, registry, expected, image, target = sys.argv[1:]
registry = open_registry(registry)
deploy(lambda: registry.record(version), target, name="polarmask", registry=registry,
       expected=expected, image=Path(image).read_bytes())
"""


def start_run(cluster, folder, model):
    """Deploy from a process of its own."""
    (folder / "image.png").write_bytes(cluster.image)
    version = cluster.register(model).version
    arguments = [version, cluster.registry.where, cluster.registry.champion_version()]
    arguments += [folder / "image.png", TARGET]
    return subprocess.Popen([sys.executable, "-c", DEPLOY, *map(str, arguments)])


def test_d31_of_two_runs_at_once_one_wins(cluster, tmp_path):
    """Two runs roll out at once -> one is promoted and serves, the other fails."""
    models = [make_model(tmp_path / name, seed=6, name=name) for name in ("ours", "theirs")]
    runs = [start_run(cluster, tmp_path, model) for model in models]
    codes = [run.wait(timeout=LIMIT_SECONDS) for run in runs]
    assert sorted(codes) == [0, 1]


def test_d16_after_a_killed_run_the_next_returns_to_the_champion(cluster, tmp_path):
    """A run is killed in mid roll-out -> the next one does not take what it left for proven."""
    nonsense = make_model(tmp_path / "nonsense", seed=4, behaviour="answers-nonsense")
    slow = make_model(tmp_path / "slow", seed=5, behaviour="is-never-ready")
    run = start_run(cluster, tmp_path, slow)
    when_rolling(cluster, run.kill).join()
    assert run.wait() == -signal.SIGKILL
    assert RETURN_TO in cluster.deployment()["metadata"]["annotations"]
    with refused(cluster, RollOutError, "JSONDecodeError"):
        cluster.deploy(nonsense)


API_FAULTS = {
    "D17-each-request-fails-twice": [
        Fault("GET .*/deployments/", times=2, status=503),
        Fault("PATCH", times=2, status=500),
        Fault("GET .*/pods", times=2, status=429),
        Fault("GET .*/services/", times=2, drop=True),
    ],
    "D18-the-answer-to-the-change-is-lost": [Fault("PATCH", lose_answer=True)],
    "D19-the-deployment-changes-between-read-and-write": [Fault("PATCH", times=3, status=409)],
}


@pytest.mark.parametrize("faults", API_FAULTS.values(), ids=API_FAULTS)
def test_bad_moments_of_the_api_server_are_survived(cluster, candidate, faults):
    """5xx, lost connections and conflicts of the API server -> deployed all the same, once."""
    before = cluster.deployment()["metadata"]["generation"]
    ordered = [cluster.server.faults.add(fault) for fault in faults]
    deployed = cluster.deploy(candidate)
    assert cluster.registry.champion_version() == deployed.version
    assert [fault.hits for fault in ordered] == [fault.times for fault in ordered]
    assert cluster.deployment()["metadata"]["generation"] == before + 1


def test_d20_a_restart_of_the_api_server_is_survived(cluster, candidate):
    """The API server is gone for a while in mid roll-out -> deployed all the same."""

    def restart():
        with cluster.server.outage():
            time.sleep(1)

    acting = when_rolling(cluster, restart)
    deployed = cluster.deploy(candidate)
    acting.join()
    assert cluster.registry.champion_version() == deployed.version


def test_d21_a_registry_that_cannot_be_written_at_the_end_rolls_back(cluster, candidate):
    """The registry can't be used when it comes to promoting -> rolled back, without its help."""
    bucket, _, prefix = cluster.registry.where[5:].partition("/")
    pointer = boto3.resource("s3").Object(bucket, f"{prefix}/champion.json")
    good, champion = pointer.get()["Body"].read(), cluster.registry.champion_version()
    acting = when_rolling(cluster, lambda: pointer.put(Body=b"damaged"))
    try:
        with pytest.raises(RollOutError, match=f"champion.json.*version {champion} answers again"):
            cluster.deploy(candidate)
    finally:
        acting.join()
        pointer.put(Body=good)


@contextmanager
def changed(cluster, alter, undo):
    """Let an administrator break the Deployment, and fix it at the end."""
    cluster.change(alter)
    try:
        yield
    finally:
        cluster.change(undo)


def in_container(key, value):
    def alter(deployment):
        deployment["spec"]["template"]["spec"]["containers"][0][key] = value

    return alter


@pytest.mark.parametrize(
    ("key", "bad", "reason"),
    [
        pytest.param("image", "absent:1", "ImagePullBackOff", id="D22-image-cannot-be-pulled"),
        pytest.param(
            "resources",
            {"limits": {"cpu": "1", "nvidia.com/gpu": "8"}},
            "Insufficient nvidia.com/gpu",
            id="D23-no-node-has-room",
        ),
        pytest.param(
            "envFrom",
            [{"secretRef": {"name": "absent"}}],
            "CreateContainerConfigError.*absent",
            id="D24-secret-is-missing",
        ),
    ],
)
def test_pods_that_cannot_start_leave_the_old_ones_answering(
    cluster, candidate, monkeypatch, key, bad, reason
):
    """New pods can't start, whatever they serve -> reported; the old pod still answers."""
    champion = cluster.registry.champion_version()
    good = cluster.deployment()["spec"]["template"]["spec"]["containers"][0].get(key, [])
    monkeypatch.setattr(cluster.kubelet, "images", {"polarmask-serving:0.1.0-python3.11": []})
    with changed(cluster, in_container(key, bad), in_container(key, good)):
        with pytest.raises(RollOutError, match=f"(?s){reason}") as caught:
            cluster.deploy(candidate)
        assert "going back failed, too" in str(caught.value)
        assert f"version {champion} answers" in str(caught.value)
        assert cluster.answering() == champion
    cluster.server.wait_for(lambda: len(cluster.pods()) == 1)


def paused(value):
    return lambda deployment: deployment["spec"].update(paused=value)


def test_d25_a_paused_deployment_is_refused_at_once(cluster, candidate):
    """The Deployment is paused -> refused before anything is stored or changed."""
    stored = set(archives_of(cluster))
    with (
        changed(cluster, paused(True), paused(False)),
        pytest.raises(RollOutError, match="kubectl rollout resume"),
    ):
        cluster.deploy(candidate)
    assert set(archives_of(cluster)) == stored


def test_d26_missing_rights_change_nothing(cluster, candidate):
    """The service account may not change the Deployment -> reported, nothing was changed."""

    def forbid(role):
        (rule,) = (each for each in role["rules"] if each["resources"] == ["deployments"])
        rule["verbs"] = ["get"]

    def allow(role):
        (rule,) = (each for each in role["rules"] if each["resources"] == ["deployments"])
        rule["verbs"] = ["get", "patch"]

    champion = cluster.registry.champion_version()
    cluster.server.update("Role", "polarmask-pipeline", forbid)
    try:
        with pytest.raises(
            RollOutError, match=f"cannot patch.*version {champion} serves as before"
        ):
            cluster.deploy(candidate)
    finally:
        cluster.server.update("Role", "polarmask-pipeline", allow)


def is_running(cluster, pod):
    statuses = cluster.server.get("Pod", pod)["status"].get("containerStatuses") or []
    return any("running" in each["state"] for each in statuses if each["name"] == "torchserve")


def test_d27_a_new_pod_that_dies_once_comes_back(cluster, candidate):
    """A new pod is killed in mid roll-out -> the kubelet restarts it, deployed all the same."""
    before = set(cluster.pods())

    def kill():
        cluster.server.wait_for(lambda: set(cluster.pods()) - before)
        (new,) = set(cluster.pods()) - before
        cluster.server.wait_for(lambda: is_running(cluster, new))
        cluster.kubelet.kill_pod(new, container="torchserve")

    acting = when_rolling(cluster, kill)
    deployed = cluster.deploy(candidate)
    acting.join()
    assert cluster.registry.champion_version() == deployed.version


def test_d28_a_registry_that_pods_cannot_read_is_refused(cluster, candidate, tmp_path, monkeypatch):
    """The registry is a folder of the step's pod -> refused before anything is changed."""
    monkeypatch.setattr(cluster, "registry", open_registry(str(tmp_path / "registry")))
    with pytest.raises(RegistryError, match="give deploy_registry=s3://"):
        cluster.deploy(candidate)
    monkeypatch.undo()


def test_d29_a_deployment_that_is_not_there_is_named(empty, candidate):
    """The manifests were not applied -> reported before anything is stored."""
    empty.server.delete("Deployment", "polarmask")
    with pytest.raises(RollOutError, match='"polarmask" not found; apply the manifests of k8s/'):
        empty.deploy(candidate)
    assert not archives_of(empty)


def test_d30_no_cluster_is_reported(candidate, empty, monkeypatch, tmp_path):
    """No way to a cluster -> the error names what to set."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(ClusterError, match="KUBECONFIG"):
        empty.deploy(candidate)


def test_d32_keep_alive_clients_lose_nothing_in_roll_outs(cluster, candidate, tmp_path):
    """Plain clients keep their connections through two roll-outs -> every request is answered."""
    url = urlsplit(cluster.url)
    clients = [
        KeepAliveClient(lambda: (url.hostname, url.port), url.path, cluster.image)
        for _ in range(10)
    ]
    with keep_asking(clients, per_second=20):
        cluster.deploy(candidate)
        cluster.deploy(make_model(tmp_path / "next", seed=3))
        cluster.server.wait_for(lambda: len(cluster.server.list("Pod")) == 1, 60)  # drained
        time.sleep(1)
    answers = [answer for client in clients for answer in client.answers]
    assert len(answers) > 20
    assert set(answers) == {200}
    assert all(client.closes >= 2 for client in clients)
