"""New models tried on live requests, with pods that a stand-in for TorchServe serves in."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from kubernetes.client import AppsV1Api, CoreV1Api
from kubernetes.client.exceptions import ApiException

from polarmask_components.cluster.connection import connect
from polarmask_components.errors import RollOutError
from polarmask_serving.errors import ServerError
from polarmask_serving.proxy.trial import entries
from serving_cluster import cluster_of_one_image, make_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders k8s/"),
]
COPIES = {"copies": 1, "minutes": 0.05, "min_requests": 10}
SHARE = {"share": 0.5, "minutes": 0.05, "min_requests": 10}


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    settings = {"token": "of-the-pipeline", "trial": True}
    with cluster_of_one_image(s3_server, folder, **settings) as cluster:
        cluster.deploy(make_model(folder / "first", seed=1), trial=COPIES)
        yield cluster


@contextmanager
def clients(cluster):
    """Ask 20 times a second until the block ends; give the versions that answered."""
    seen, over = [], threading.Event()

    def one():
        try:
            seen.append(cluster.answering())
        except ServerError as error:
            seen.append(str(error))

    def send(pool):
        while not over.wait(0.05):
            pool.submit(one)

    with ThreadPoolExecutor(16) as pool:
        sender = threading.Thread(target=send, args=(pool,))
        sender.start()
        try:
            yield seen
        finally:
            over.set()
            sender.join()


def is_over(cluster):
    candidate = cluster.server.get("Deployment", "polarmask-candidate")
    traffic = cluster.server.get("ConfigMap", "polarmask-traffic")
    return candidate["spec"]["replicas"] == 0 and traffic.get("data") in (
        None,
        entries(copies=0, share=0),
    )


@pytest.mark.parametrize("how", [COPIES, SHARE], ids=["copies", "share"])
def test_a_good_model_is_tried_then_rolled_out(cluster, tmp_path, how):
    before = cluster.registry.champion_version()
    with clients(cluster) as seen:
        deployed = cluster.deploy(
            make_model(tmp_path / "m", seed=2 if how is COPIES else 3), trial=how
        )
    assert deployed.trial["compared"] >= 10
    assert deployed.trial["candidate"]["errors"] == deployed.trial["unanswered"] == 0
    assert cluster.registry.champion_version() == deployed.version
    assert set(seen) == {before, deployed.version}
    assert is_over(cluster)


@pytest.mark.parametrize(
    ("behaviour", "how", "expected_text"),
    [
        pytest.param("fails-copies", COPIES, "failed at", id="fails"),
        pytest.param("sees-other-things", COPIES, "agrees too little", id="sees-other-things"),
        pytest.param("is-slow", COPIES, "too slow", id="is-slow"),
        pytest.param("is-slow", SHARE, "too slow", id="is-slow-in-a-share"),
        pytest.param("crashes", COPIES, "weights are missing", id="crashes"),
    ],
)
def test_a_bad_model_stays_out_and_clients_notice_nothing(
    cluster, tmp_path, behaviour, how, expected_text
):
    champion, generation = cluster.registry.champion_version(), cluster.deployment()["metadata"]
    with clients(cluster) as seen, pytest.raises(RollOutError, match=expected_text) as caught:
        cluster.deploy(make_model(tmp_path / "m", seed=9, behaviour=behaviour), trial=how)
    assert f"version {champion} serves as before" in str(caught.value)
    assert cluster.registry.champion_version() == champion
    assert cluster.deployment()["metadata"]["generation"] == generation["generation"]
    assert is_over(cluster)
    if how is COPIES:
        assert set(seen) == {champion}
    assert not [each for each in seen if " " in each]  # no error


def test_a_trial_lasts_from_when_its_shares_have_reached_the_proxies(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster.kubelet, "volume_lag", 6)  # twice as long as the trial
    with clients(cluster):
        deployed = cluster.deploy(make_model(tmp_path / "m", seed=13), trial=COPIES)
    assert deployed.trial["compared"] >= 10


def test_without_requests_the_model_stays_out(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("polarmask_components.deploy.trial.run._REACH_SECONDS", 1.0)
    with pytest.raises(RollOutError, match="only 0 requests reached the candidate, 10 are needed"):
        cluster.deploy(make_model(tmp_path / "m", seed=10), trial=COPIES | {"minutes": 0.01})
    assert is_over(cluster)


def traffic_is(cluster, **shares):
    return cluster.server.get("ConfigMap", "polarmask-traffic").get("data") == entries(**shares)


def test_a_run_that_is_asked_to_end_ends_its_trial(cluster, tmp_path):
    champion = cluster.registry.champion_version()

    def ask_to_end():
        cluster.server.wait_for(lambda: traffic_is(cluster, copies=1, share=0), 60)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask_to_end)
    asking.start()
    with clients(cluster) as seen, pytest.raises(RollOutError, match="stopped by a signal"):
        cluster.deploy(make_model(tmp_path / "m", seed=11), trial=COPIES | {"minutes": 5})
    asking.join()
    assert is_over(cluster)
    assert cluster.registry.champion_version() == champion
    assert set(seen) == {champion}


@pytest.mark.parametrize("how", [{}, COPIES], ids=["no-trial", "a-trial"])
def test_what_a_killed_run_left_is_ended_by_the_next(cluster, tmp_path, how):
    def left(config_map):
        config_map["data"] = entries(copies=0, share=0.3)

    cluster.server.update("ConfigMap", "polarmask-traffic", left)
    cluster.server.update(
        "Deployment", "polarmask-candidate", lambda found: found["spec"].update(replicas=1)
    )
    assert not is_over(cluster)
    with clients(cluster) as seen:
        deployed = cluster.deploy(make_model(tmp_path / "m", seed=12 + len(how)), trial=how)
    assert is_over(cluster)
    assert cluster.registry.champion_version() == deployed.version
    assert not [each for each in seen if " " in each]  # no error


def test_the_steps_may_touch_what_a_trial_needs_and_nothing_else(cluster):
    api = connect()
    zero = {"spec": {"replicas": 0}}
    AppsV1Api(api).patch_namespaced_deployment("polarmask-candidate", "polarmask", zero)
    for forbidden in (
        lambda: CoreV1Api(api).patch_namespaced_config_map("other", "polarmask", {"data": {}}),
        lambda: CoreV1Api(api).list_namespaced_config_map("polarmask"),
        lambda: CoreV1Api(api).delete_namespaced_config_map("polarmask-traffic", "polarmask"),
        lambda: AppsV1Api(api).patch_namespaced_deployment("other", "polarmask", zero),
        lambda: AppsV1Api(api).delete_namespaced_deployment("polarmask-candidate", "polarmask"),
        lambda: AppsV1Api(api).create_namespaced_deployment(
            "polarmask", {"metadata": {"name": "more"}}
        ),
    ):
        with pytest.raises(ApiException) as caught:
            forbidden()
        assert caught.value.status == 403
