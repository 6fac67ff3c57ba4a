"""Deployment on this machine with a real pod and a real registry: what fails changes nothing."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
import requests
import torch

from factories import make_tiny_coco
from polarmask.config.presets import tiny
from polarmask.data.coco import Category
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.network.detector import PolarMask
from polarmask_components.commands import models
from polarmask_components.deploy import local_target
from polarmask_components.deploy.deploy import deploy
from polarmask_components.deploy.local_target import (
    LocalTarget,
    ask_champion,
    is_serving,
    locked,
    stop_server,
)
from polarmask_components.deploy.register_model import register_model
from polarmask_components.errors import ConflictError, RollOutError
from polarmask_components.registry.registry import open_registry
from polarmask_serving.errors import PortTakenError, ServerError
from polarmask_serving.local_pod import LocalPod
from registries import promotions_of


def make_model(folder, seed):
    torch.manual_seed(seed)
    config = replace(tiny(), model=replace(tiny().model, num_classes=1))
    provenance = {"data_commit": "c0ffee", "data_hash": "a.dir", "code_version": "v1"}
    card = ModelCard(config, (Category(1, "cell"),), provenance)
    save_model(folder, PolarMask(config.model), card)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a registry and a server, and the image to ask with."""
    folder = tmp_path_factory.mktemp("a deployment")
    data = make_tiny_coco(folder / "data", images=1, val_images=1)
    yield folder, (data / "images" / "val_000.png").read_bytes()
    stop_server(folder / "server")


@pytest.fixture(scope="module")
def champion(place):
    folder, _ = place
    return put(place, make_model(folder / "first", 1), expected=None)


def register(model, registry):
    return register_model(model, name="polarmask", metrics={"mask_ap": 0.5}, registry=registry)


def put(place, model, *, expected):
    folder, image = place
    registry = open_registry(str(folder / "registry"))
    return deploy(
        lambda: register(model, registry),
        str(folder / "server"),
        name="polarmask",
        registry=registry,
        expected=expected,
        image=image,
    )


def pods(place):
    """Return the versions that have a folder."""
    return [path.name for path in (place[0] / "server" / "pods").iterdir()]


def state(place):
    """Return who is champion in the registry and who answers."""
    folder, image = place
    registry = open_registry(str(folder / "registry"))
    answering = ask_champion(folder / "server", name="polarmask", registry=registry, image=image)
    return registry.champion_version(), answering.answer["model"]["version"]


def test_nothing_is_served_before_the_first_deployment(tmp_path):
    registry = open_registry(str(tmp_path / "registry"))
    assert ask_champion(tmp_path, name="polarmask", registry=registry, image=b"") is None
    assert not is_serving(tmp_path)
    stop_server(tmp_path)


def test_first_model_is_served_and_promoted(place, champion):
    assert champion.answer["model"] == {"name": "polarmask", "version": champion.version}
    assert state(place) == (champion.version, champion.version)
    registered = open_registry(str(place[0] / "registry")).champion()
    archive = open_registry(str(place[0] / "registry")).archive_uri(registered)
    assert (place[0] / "server" / "pods" / champion.version / "model.mar").samefile(archive)
    assert registered.facts.data_commit == "c0ffee"
    assert registered.facts.config["name"] == "tiny"
    assert registered.facts.metrics == {"mask_ap": 0.5}


def test_deploying_the_champion_again_changes_nothing(place, champion):
    again = put(place, place[0] / "first", expected=champion.version)
    assert again.version == champion.version
    assert len(promotions_of(open_registry(str(place[0] / "registry")))) == 1


def test_model_that_lost_the_race_serves_nobody(place, champion):
    with pytest.raises(ConflictError, match=champion.version):
        put(place, make_model(place[0] / "late", 2), expected=None)
    assert state(place) == (champion.version, champion.version)


def test_model_that_does_not_load_changes_nothing(place, champion):
    broken = make_model(place[0] / "broken", 3)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    expected_text = f"did not come up.*version {champion.version} answers"
    with pytest.raises(RollOutError, match=expected_text):
        put(place, broken, expected=champion.version)
    assert state(place) == (champion.version, champion.version)


@pytest.mark.slow
def test_a_roll_back_is_a_deployment_of_the_model_before(place, champion, capsys):
    folder, _ = place
    registry, before = open_registry(str(folder / "registry")), champion.version
    newer = put(place, make_model(folder / "newer", 5), expected=before)
    options = ["--registry", registry.where]
    assert models.main(["rollback", *options]) == 0
    assert f"{before} is the champion and answers at {newer.url}" in capsys.readouterr().out
    assert state(place) == (before, before)
    # What does not answer does not take over.
    other = folder / "no image"
    other.write_bytes(b"no image")
    assert models.main(["rollback", newer.version, *options, "--image", str(other)]) == 2
    assert f"version {before} answers again" in capsys.readouterr().err
    assert state(place) == (before, before)


def test_failed_first_deployment_leaves_no_server(place, tmp_path):
    broken = make_model(tmp_path / "broken", 4)
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(RollOutError, match="no version served before, and none does now"):
        put((tmp_path, place[1]), broken, expected=None)
    assert not is_serving(tmp_path / "server")
    assert open_registry(str(tmp_path / "registry")).champion() is None


def refuse_to_launch(self, archive):
    self.stop(drain_seconds=0)
    raise ServerError("the model does not load")


def refuse_the_answer(answer, name, version):
    raise ServerError("scores out of range")


@pytest.mark.slow
def test_a_champion_that_does_not_come_up_again_leaves_who_answers(place, tmp_path, monkeypatch):
    here, model = (tmp_path, place[1]), make_model(tmp_path / "promoted", 31)
    old = put(here, make_model(tmp_path / "served", 30), expected=None).version
    registry = open_registry(str(tmp_path / "registry"))
    new = register(model, registry).version
    registry.promote(new, expected=old)  # by a run whose server is another one
    fails = f"does not load -- {new} is the champion, but does not come up"
    try:
        with monkeypatch.context() as patch:
            patch.setattr(LocalPod, "launch", refuse_to_launch)
            with pytest.raises(RollOutError, match=f"{fails}; version {old} answers at http"):
                put(here, model, expected=old)
            assert serving(here).version == old
            stop_server(tmp_path / "server")
            with pytest.raises(RollOutError, match=f"{fails}; no version answers"):
                put(here, model, expected=old)
            assert not is_serving(tmp_path / "server")
        assert state(here) == (new, new)
        with monkeypatch.context() as patch:
            patch.setattr(local_target, "check_answer", refuse_the_answer)
            with pytest.raises(RollOutError, match=f"{new} is the champion and stays in service"):
                put(here, model, expected=new)
        assert state(here) == (new, new)
    finally:
        stop_server(tmp_path / "server")


@pytest.mark.slow
def test_a_lost_race_for_a_port_is_run_again(place, tmp_path, monkeypatch):
    launch, taken = LocalPod.launch, []

    def launch_late(pod, archive):
        if not taken:
            taken.append(pod)
            pod.stop(drain_seconds=0)
            raise PortTakenError("taken")
        launch(pod, archive)

    monkeypatch.setattr(LocalPod, "launch", launch_late)
    try:
        new = put((tmp_path, place[1]), make_model(tmp_path / "model", 1), expected=None)
        assert state((tmp_path, place[1])) == (new.version, new.version)
    finally:
        stop_server(tmp_path / "server")


def refuse_to_move(self, port):
    raise ServerError("the proxy does not start")


@pytest.mark.slow
def test_server_that_missed_a_promotion_is_brought_to_the_champion(place, champion, monkeypatch):
    model = make_model(place[0] / "missed", 5)
    with monkeypatch.context() as patch:
        patch.setattr(LocalPod, "move", refuse_to_move)
        with pytest.raises(RollOutError, match="is the champion, but could not take over"):
            put(place, model, expected=champion.version)
    answer = requests.post(champion.url, data=place[1], timeout=30).json()
    assert answer["model"]["version"] == champion.version
    promoted = open_registry(str(place[0] / "registry")).champion_version()
    assert promoted != champion.version
    assert state(place) == (promoted, promoted)
    assert pods(place) == [promoted]


@pytest.mark.slow
def test_next_deployment_puts_the_promoted_champion_into_service_first(place, monkeypatch):
    before, _ = state(place)
    with monkeypatch.context() as patch:
        patch.setattr(LocalPod, "move", refuse_to_move)
        with pytest.raises(RollOutError):
            put(place, make_model(place[0] / "missed again", 6), expected=before)
    promoted = open_registry(str(place[0] / "registry")).champion_version()
    with pytest.raises(ConflictError):  # compared with the one before
        put(place, make_model(place[0] / "late again", 7), expected=before)
    assert serving(place).version == promoted != before


def test_champion_that_cannot_be_fetched_blocks_no_deployment(place):
    folder = place[0]
    old, _ = state(place)
    record = folder / "registry" / "models" / f"{old}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format_version": 9}))
    assert state(place) == (old, old)  # it answers, so it continues to answer
    new = put(place, make_model(folder / "after damage", 8), expected=old)
    assert state(place) == (new.version, new.version)


@pytest.mark.slow
def test_server_whose_archive_is_damaged_takes_the_champion_from_the_registry(place):
    folder, _ = place
    version, _ = state(place)
    stop_server(folder / "server")
    archive = folder / "server" / "pods" / version / "model.mar"
    archive.unlink()  # it may be a link to the registry's
    archive.write_bytes(b"no archive")
    assert state(place) == (version, version)


@pytest.mark.slow
def test_of_two_deployments_at_once_one_wins_and_registry_and_server_agree(place, tmp_path):
    models = [make_model(tmp_path / name, seed) for name, seed in (("a", 11), ("b", 12))]
    here = (tmp_path, place[1])
    start = threading.Barrier(2)

    def race(model):
        start.wait()
        try:
            return put(here, model, expected=None).version
        except ConflictError:
            return None

    try:
        with ThreadPoolExecutor(2) as pool:
            won = [version for version in pool.map(race, models) if version]
        assert len(won) == 1
        assert state(here) == (won[0], won[0])
        assert pods(here) == [won[0]]
    finally:
        stop_server(tmp_path / "server")


def test_stopping_waits_for_a_deployment_that_goes_on(place):
    state(place)
    folder = place[0] / "server"
    with locked(folder):
        stopping = threading.Thread(target=stop_server, args=(folder,))
        stopping.start()
        stopping.join(1)
        assert stopping.is_alive()
        assert is_serving(folder)
    stopping.join(30)
    assert not is_serving(folder)


def serving(place):
    return LocalTarget(place[0] / "server", name="polarmask").serving


@pytest.mark.slow
def test_the_port_stays_the_same_over_versions_stops_and_kills(place):
    before, _ = state(place)
    port = serving(place).port
    new = put(place, make_model(place[0] / "same port", 21), expected=before)
    assert serving(place).port == port
    stop_server(place[0] / "server")
    assert state(place) == (new.version, new.version)
    assert serving(place).port == port
    scratch = serving(place).scratch
    for process in psutil.process_iter():
        if process.name() == "java" and scratch in " ".join(process.cmdline()):
            process.kill()
    assert state(place) == (new.version, new.version)
    assert serving(place).port == port


@pytest.mark.slow
def test_where_one_port_takes_one_proxy_the_old_one_makes_room_or_comes_back(place, monkeypatch):
    """As outside of Linux."""
    before, _ = state(place)
    url = serving(place).url
    move, refusals = LocalPod.move, 1

    def move_alone(pod, port):
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise PortTakenError("taken")
        return move(pod, port)

    monkeypatch.setattr(LocalPod, "move", move_alone)
    new = put(place, make_model(place[0] / "alone", 22), expected=before)
    assert (new.url, state(place)) == (url, (new.version, new.version))
    refusals = 2
    with pytest.raises(RollOutError, match="could not take over"):
        put(place, make_model(place[0] / "kept out", 23), expected=new.version)
    answer = requests.post(url, data=place[1], timeout=30).json()
    assert answer["model"]["version"] == new.version


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 99}'])
def test_a_damaged_record_is_refused_by_name(tmp_path, content):
    (tmp_path / "pod.json").write_text(content)
    with pytest.raises(ServerError, match=r"pod\.json"):
        is_serving(tmp_path)


def test_the_server_of_an_earlier_release_is_refused_by_name(place, tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "server.json").write_text('{"format_version": 1, "pid": 1}')
    reason = r"server\.json was left by the server of an earlier release; .* remove .*server$"
    for use in (is_serving, stop_server):
        with pytest.raises(ServerError, match=reason):
            use(tmp_path / "server")
    with pytest.raises(ServerError, match=reason):
        put((tmp_path, place[1]), tmp_path / "no model", expected=None)
