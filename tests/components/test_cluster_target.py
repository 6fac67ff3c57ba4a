"""A model's way into a cluster, with pods that a stand-in for TorchServe serves in.

What breaks on this way is in tests/faults; real TorchServe under load in tests/e2e.
"""

from types import SimpleNamespace

import pytest
import requests

from polarmask.evaluation.measure_engines import measure_engines
from polarmask_components.commands import models
from polarmask_components.deploy.cluster_state import RETURN_TO, VERSION, served_model
from polarmask_components.errors import RollOutError
from polarmask_components.registry.history import STOPPED, known_models
from polarmask_components.steps.deploy_torchserve import deploy_torchserve
from registries import promotions_of
from serving_cluster import TARGET, cluster_of_one_image, make_model


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    with cluster_of_one_image(s3_server, folder, token="of-the-pipeline") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def first(cluster, tmp_path_factory):
    """What came of the first deployment."""
    return cluster.deploy(make_model(tmp_path_factory.mktemp("first") / "model", seed=1))


def test_the_pods_answer_nobody_without_a_token(cluster, first):
    refused = requests.post(first.url, data=cluster.image, timeout=30)
    assert refused.status_code == 401


def test_the_first_model_is_scaled_up_served_and_promoted(cluster, first):
    assert first.url == cluster.url
    assert first.answer["model"] == {"name": "polarmask", "version": first.version}
    assert cluster.registry.champion_version() == cluster.answering() == first.version
    deployment = cluster.deployment()
    assert deployment["spec"]["replicas"] == 1
    assert RETURN_TO not in deployment["metadata"]["annotations"]
    served = served_model(deployment)
    assert served.version == first.version
    assert served.uri == f"{cluster.registry.where}/models/{served.version}.mar"


@pytest.mark.slow
def test_the_step_takes_a_second_model_and_keeps_the_number_of_pods(cluster, first, tmp_path):
    cluster.scale(2)
    (tmp_path / "sample.png").write_bytes(cluster.image)
    model = make_model(tmp_path / "model", seed=2)
    answer = SimpleNamespace(path=str(tmp_path / "answer.json"), metadata={})
    engines = tmp_path / "engines.json"
    engines.write_text(measure_engines(model).to_json())
    url = deploy_torchserve.python_func(
        model=SimpleNamespace(path=str(model)),
        sample=SimpleNamespace(path=str(tmp_path / "sample.png")),
        metrics=SimpleNamespace(metadata={"mask_ap": 0.5}),
        engines=SimpleNamespace(path=str(engines)),
        registry=cluster.registry.where,
        target=TARGET,
        model_name="polarmask",
        champion_version=first.version,
        answer=answer,
    )
    assert url == cluster.url
    assert cluster.registry.champion_version() == answer.metadata["version"] != first.version
    assert {cluster.answering() for _ in range(20)} == {answer.metadata["version"]}
    assert {pod["metadata"]["annotations"][VERSION] for pod in cluster.server.list("Pod")} == {
        answer.metadata["version"]
    }  # nor is one of before on its way out
    assert cluster.deployment()["spec"]["replicas"] == 2


def test_deploying_the_champion_again_changes_nothing(cluster, first):
    champion = cluster.registry.champion_version()
    before = cluster.deployment()["metadata"]["generation"]
    assert cluster.deploy(cluster.registry.record(champion)).version == champion
    assert cluster.deployment()["metadata"]["generation"] == before
    assert promotions_of(cluster.registry)[-1]["version"] == champion


def test_a_model_that_fails_keeps_the_reason_and_leaves_champion_and_answers_as_they_were(
    cluster, first, tmp_path
):
    champion = cluster.registry.champion_version()
    with pytest.raises(RollOutError) as caught:
        cluster.deploy(make_model(tmp_path / "model", seed=3, behaviour="crashes"))
    message = str(caught.value)
    assert "weights are missing" in message  # why
    assert f"version {champion} answers again at {cluster.url}" in message  # and what now
    assert cluster.registry.champion_version() == cluster.answering() == champion
    found = [each for each in known_models(cluster.registry) if each.state == STOPPED]
    assert [each.note.partition(": ")[0] for each in found] == ["the deployment failed"]


def test_a_roll_back_is_a_deployment_of_the_model_before(cluster, first, tmp_path, capsys):
    registry, before = cluster.registry, cluster.registry.champion_version()
    cluster.deploy(make_model(tmp_path / "newer", seed=9))
    assert models.main(["rollback", "--registry", registry.where, "--target", TARGET]) == 0
    assert f"version {before} is the champion and answers at" in capsys.readouterr().out
    assert registry.champion_version() == cluster.answering() == before
    assert RETURN_TO not in cluster.deployment()["metadata"]["annotations"]


@pytest.mark.parametrize(
    "target", ["kubernetes://polarmask", "kubernetes:///x", "kubernetes://a/b/c"]
)
def test_a_target_that_names_no_deployment_is_refused(cluster, tmp_path, monkeypatch, target):
    monkeypatch.setattr("serving_cluster.TARGET", target)
    with pytest.raises(RollOutError, match="kubernetes://NAMESPACE/NAME"):
        cluster.deploy(make_model(tmp_path / "model"))
