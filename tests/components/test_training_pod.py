"""A pod's own part, on this machine: snapshots beside the training, and what a restart finds."""

import json
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

import pytest

from factories import make_tiny_coco
from polarmask.cli import main as polarmask
from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.data.coco import Category
from polarmask.inference.model_folder import ModelCard, read_card, save_model
from polarmask.network.detector import PolarMask
from polarmask.training.checkpoint import load_checkpoint
from polarmask_components.signals import on_stop_signal
from polarmask_components.training import training_pod as pod
from polarmask_components.training.job_storage import JobStorage
from polarmask_components.training.run_snapshots import restore_newest_snapshot, upload_snapshots
from polarmask_components.training.training_pod import main as training_pod
from started import started

SMALL = ("--preset=tiny", "--set=model.channels=32", "--set=model.tower_depth=1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Data, labels and the model to start from."""
    folder = tmp_path_factory.mktemp("inputs")
    config = override(tiny(), [each.removeprefix("--set=") for each in SMALL[1:]])
    config = replace(config, model=replace(config.model, num_classes=1))
    card = ModelCard(config, (Category(1, "other"),))
    save_model(folder / "init" / "model", PolarMask(config.model), card)
    data = make_tiny_coco(folder / "data", images=8, val_images=2)
    command = ["precompute", *SMALL, "--data", str(data), "--out", str(folder / "labels")]
    assert polarmask(command) == 0
    return folder


@pytest.fixture
def place(s3_environment, inputs, request):
    place = f"s3://polarmask/{request.node.name}"
    JobStorage(place, "job").store_inputs({each.name: each for each in inputs.iterdir()})
    return place


def flags_of(place, workspace, epochs):
    return [
        *("--storage", place, "--job", "job", "--spec", "spec"),
        *("--workspace", str(workspace), "--", *SMALL),
        *(f"--set=optim.epochs={epochs}", "--set=optim.batch_size=4", "--device=cpu"),
    ]


@pytest.fixture
def one_node(monkeypatch):
    """The environment that the operator gives a job of one node and one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{"PET_NNODES": "1", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": "0"},
        **{"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)},
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def wait_for(condition, process, log):
    give_up = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < give_up, log.read_text()[-4000:]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_pod_that_is_asked_to_end_leaves_its_last_step_to_another(place, tmp_path, one_node):
    storage = JobStorage(place, "job")
    command = [sys.executable, "-m", "polarmask_components.training.training_pod"]
    log = tmp_path / "log"
    command += flags_of(place, tmp_path / "first", 500)
    with log.open("wb") as output, started(command, stdout=output, stderr=output) as process:
        wait_for(storage.snapshots, process, log)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode != 0
    last = load_checkpoint(tmp_path / "first" / "run" / "checkpoint.pt").step
    assert storage.snapshots()[0].step == last

    # Another machine, and only as many steps as are done: it finds them all.
    restore_newest_snapshot(tmp_path / "second" / "run", storage)
    assert load_checkpoint(tmp_path / "second" / "run" / "checkpoint.pt").step == last
    lines = (tmp_path / "second" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, last + 1))


def test_a_pod_stores_its_result_and_one_that_starts_later_has_nothing_to_do(
    place, tmp_path, one_node, monkeypatch
):
    workspace = tmp_path / "first"
    assert training_pod(flags_of(place, workspace, 1)) == 0
    card = read_card(workspace / "run" / "model")
    assert card.provenance["init_from"] == str(workspace / "init" / "model")
    result = JobStorage(place, "job").result()
    assert result.spec == "spec"
    assert set(result.model) == {"model.json", "model.safetensors"}
    pages = {f"{name}.html" for name in ("index", "data", "labels", "training")}
    assert set(result.run) == {"config.json", "data.json", "metrics.jsonl", *pages}
    assert training_pod(flags_of(place, tmp_path / "later", 1)) == 0
    assert not (tmp_path / "later").exists()


def write_checkpoint(run, text):
    run.mkdir(exist_ok=True)
    (run / "new").write_text(text)
    (run / "new").replace(run / "checkpoint.pt")


def test_a_storage_that_is_away_holds_up_no_training(tmp_path, s3_environment, monkeypatch, caplog):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("polarmask_components.training.run_snapshots._DEADLINE_SECONDS", 0.1)
    monkeypatch.setattr("polarmask.training.checkpoint.read_step", lambda _: 1)
    give_up = time.monotonic() + 15
    with upload_snapshots(tmp_path / "run", "s3://polarmask/away", "job"):
        write_checkpoint(tmp_path / "run", "one")
        while "the checkpoint is not stored" not in caplog.text:
            assert time.monotonic() < give_up
            time.sleep(0.05)
    assert time.monotonic() < give_up


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_snapshot(place, tmp_path, caplog):
    storage = JobStorage(place, "job")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "checkpoint.pt").write_text("a snapshot")
    storage.save_snapshot(tmp_path / "kept", 3)
    write_checkpoint(tmp_path / "run", "damaged")
    restore_newest_snapshot(tmp_path / "run", storage)
    assert (tmp_path / "run" / "checkpoint.pt").read_text() == "a snapshot"
    assert "it is dropped" in caplog.text


def test_a_node_that_was_killed_while_it_fetched_a_snapshot_starts_again(place, tmp_path):
    storage = JobStorage(place, "job")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "checkpoint.pt").write_text("a snapshot")
    storage.save_snapshot(tmp_path / "kept", 3)
    for left in (".run.restored", ".run.restored-3"):
        (tmp_path / left).mkdir()
        (tmp_path / left / ".checkpoint.pt.7.part").write_text("half of a fi")
    restore_newest_snapshot(tmp_path / "run", storage)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]


def test_a_node_begins_anew_whenever_the_first_one_does(s3_environment, monkeypatch):
    monkeypatch.setattr(pod, "_SECONDS_BETWEEN_STARTS", 0.05)
    storage, asked = JobStorage("s3://polarmask/starts", "job"), threading.Event()
    with on_stop_signal(lambda *_: asked.set()):
        monkeypatch.setenv("PET_NODE_RANK", "1")
        pod._start_together(storage)  # earlier than the first node
        monkeypatch.setenv("PET_NODE_RANK", "0")
        pod._start_together(storage)
        assert not asked.wait(0.5)  # that was the start it waited for
        pod._start_together(storage)
        assert asked.wait(10)
