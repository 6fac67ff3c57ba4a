"""The model that a training of the pipeline starts from: fixed once, and fetched as it was."""

import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.config.settings import to_dict
from polarmask.data.coco import Category
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.model_sources.open_model import open_weights
from polarmask.network.detector import PolarMask
from polarmask_components.errors import DamagedObjectError, StorageError
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.registry.registry import Facts, open_registry
from polarmask_components.storage.objects import open_objects
from polarmask_components.training.cluster_training import store_inputs
from polarmask_components.training.initial_model import (
    check_initial,
    fetched,
    find_start,
    flags_for,
)
from polarmask_components.training.job_storage import JobStorage
from registries import make_archive

SMALL = override(tiny(), ["model.channels=32", "model.tower_depth=1", "model.num_classes=1"])


@pytest.fixture
def model(tmp_path):
    """A model folder with random weights, in a run folder."""
    torch.manual_seed(1)
    folder = tmp_path / "run" / "model"
    save_model(folder, PolarMask(SMALL.model), ModelCard(SMALL, (Category(1, "cell"),)))
    return folder


@pytest.fixture
def archive(model, tmp_path):
    return make_archive(tmp_path / "a.mar", "a", model=model).path


@pytest.fixture
def registry(uri, archive):
    from polarmask_serving.archive.read import read_archive

    registry = open_registry(uri)
    facts = Facts(
        data_commit="",
        data_hash="",
        code_commit="",
        code_version="",
        config=to_dict(SMALL),
        categories=[],
        metrics={},
    )
    registry.add(read_archive(archive), facts)
    return registry


@pytest.fixture
def web(tmp_path):
    """A server of the files below tmp_path; yields its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def weights_of(initial):
    """Return the weights that `polarmask train` would start from."""
    with fetched(initial) as folder:
        flag, source = flags_for(folder)
        assert flag == "--init-from"
        return open_weights(source).tensors


def assert_weights_of(initial, model):
    expected = open_weights(model).tensors
    for name, tensor in weights_of(initial).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_the_champion_is_fixed_as_its_archive(registry, model):
    start = find_start("champion", registry, SMALL)
    assert start.model is None
    assert start.line == f"training starts from scratch: {registry.where} has no champion yet"
    registry.promote("a", expected=None)
    start = find_start("champion", registry, SMALL)
    assert start.line == "training starts from champion a"
    initial = start.model
    assert initial.place == f"{registry.where}/models/a.mar"
    assert initial.sha256 == registry.record("a").archive_sha256
    assert_weights_of(initial, model)


def test_what_was_fixed_stays_whatever_becomes_champion(registry, model, tmp_path):
    registry.promote("a", expected=None)
    initial = find_start("champion", registry, SMALL).model
    other = make_archive(tmp_path / "b.mar", "b", model=model)
    registry.add(other, registry.record("a").facts)
    registry.promote("b", expected="a")
    assert find_start("champion", registry, SMALL).model != initial
    assert_weights_of(initial, model)


@pytest.mark.parametrize("what", ["run", "run/model", "a.mar"])
def test_a_path_of_this_machine(tmp_path, archive, model, what):
    registry = open_registry(str(tmp_path / "none"))
    initial = find_start(str(tmp_path / what), registry, SMALL).model
    assert Path(initial.place).is_absolute()
    assert_weights_of(initial, model)


def test_an_address_of_the_web(tmp_path, archive, model, web):
    registry = open_registry(str(tmp_path / "none"))
    initial = find_start(f"{web}/a.mar?token=hush", registry, SMALL).model
    assert initial.name == f"{web}/a.mar {initial.sha256[:12]}"
    assert_weights_of(initial, model)
    with pytest.raises(StorageError, match=r"b\.mar can't be fetched: 404"):
        find_start(f"{web}/b.mar", registry, SMALL)
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(DamagedObjectError, match="is not what was stored"), fetched(initial):
        pass


def test_an_address_in_object_storage(s3_environment, tmp_path, archive, model):
    place = f"s3://polarmask/{tmp_path.name}/published"
    open_objects(place).create("best.mar", archive)
    registry = open_registry(str(tmp_path / "none"))
    initial = find_start(f"{place}/best.mar", registry, SMALL).model
    assert_weights_of(initial, model)


def test_a_repeated_step_takes_the_model_that_the_first_try_stored(
    s3_environment, tmp_path, archive, web, model
):
    initial = find_start(f"{web}/a.mar", open_registry(str(tmp_path / "none")), SMALL).model
    storage = JobStorage(f"s3://polarmask/{tmp_path.name}/training", "job")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("a")
    store_inputs(storage, {"data": data}, initial)
    archive.unlink()  # as an address that expired
    store_inputs(storage, {"data": data}, initial)
    storage.fetch_inputs(tmp_path / "pod")
    assert (tmp_path / "pod" / "data" / "a.txt").read_text() == "a"
    expected = open_weights(model).tensors
    _, source = flags_for(tmp_path / "pod" / "init")
    torch.testing.assert_close(open_weights(source).tensors, expected)
    with pytest.raises(StorageError, match="404"):  # another model
        store_inputs(storage, {"data": data}, replace(initial, sha256="0" * 64))


def test_a_folder_that_changed_meanwhile_is_refused(tmp_path, model):
    initial = find_start(str(model), open_registry(str(tmp_path / "none")), SMALL).model
    (model / "model.json").write_text((model / "model.json").read_text() + " ")
    with pytest.raises(DamagedObjectError, match="changed since this run began"), fetched(initial):
        pass


def test_another_network_is_refused_before_the_work_begins(registry):
    registry.promote("a", expected=None)
    other = override(tiny(), ["model.backbone=mobilenet_v3_large"])
    with pytest.raises(ConfigError, match=r"only .* fit this network; .*train_preset"):
        find_start("champion", registry, other)
    rays = replace(SMALL, model=replace(SMALL.model, num_rays=24))
    assert find_start("champion", registry, rays).model is not None


def test_what_is_no_model_is_refused(tmp_path):
    registry = open_registry(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_start(str(tmp_path / "gone"), registry, SMALL)
    (tmp_path / "x.mar").write_text("x")
    with pytest.raises(ModelFormatError, match="not an archive of a model"):
        find_start(str(tmp_path / "x.mar"), registry, SMALL)


@pytest.mark.parametrize(
    ("text", "on_cluster", "is_allowed"),
    [
        ("", True, True),
        ("champion", True, True),
        ("s3://team/a.mar", True, True),
        ("https://x/a.mar", True, True),
        ("runs/first", False, True),
        ("runs/first", True, False),
        ("minio://x/a.mar", False, False),
    ],
)
def test_what_can_work_where(text, on_cluster, is_allowed):
    if is_allowed:
        check_initial(text, on_cluster=on_cluster)
        return
    with pytest.raises(ConfigError, match=r"train_init is .*give champion, s3://"):
        check_initial(text, on_cluster=on_cluster)


def test_another_champion_alone_is_no_change_and_another_file_is_one(registry, tmp_path, model):
    before = find_start("champion", registry, SMALL)
    registry.promote("a", expected=None)
    after = find_start("champion", registry, SMALL)
    assert before.decides == after.decides == "champion"
    of_path = find_start(str(model), registry, SMALL)
    assert of_path.decides == of_path.model.sha256
    assert find_start("", registry, SMALL).decides == ""


def test_a_request_carries_it_and_the_model_keeps_its_name(tmp_path, model):
    initial = find_start(str(model), open_registry(str(tmp_path / "none")), SMALL).model
    request = TrainingRequest(preset="tiny", initial=initial)
    assert TrainingRequest.from_json(request.to_json()) == request
    assert f"init_from={initial.name}" in request.flags({"data_hash": "a"})
    assert flags_for(None) == flags_for(tmp_path / "none") == []
