"""The whole pipeline on this machine: drawn data, a few training steps, a real TorchServe.

A skipped deployment is a success for Kubeflow, so the tests look at server and registry.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import psutil
import pytest

from data_repository import make_data_repository
from polarmask_components.deploy.deploy import deploy
from polarmask_components.deploy.local_target import ask_champion, is_serving, stop_server
from polarmask_components.deploy.register_model import register_model
from polarmask_components.registry.history import STOPPED, known_models
from polarmask_components.registry.registry import open_registry
from registries import promotions_of
from started import started

SETTINGS = "optim.epochs=3 optim.batch_size=4 optim.warmup_steps=1"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a space in its name: data, runs, and one run that was deployed."""
    folder = tmp_path_factory.mktemp("a checkout with spaces")
    (folder / "data").mkdir()
    place = SimpleNamespace(
        runs=folder / "runs",
        data=make_data_repository(folder / "data"),
        server=folder / "runs" / "shared" / "server",
        registry=open_registry(str(folder / "runs" / "shared" / "registry")),
    )
    yield place
    stop_server(place.server)


def command_for(place, name, settings=SETTINGS, **parameters):
    parameters = {
        "data_repository": str(place.data),
        "eval_floor_ap": "0",
        "train_processes_per_node": "1",
        "train_set": settings,
        **parameters,
    }
    flags = [flag for item in parameters.items() for flag in ("--param", "=".join(item))]
    module = [sys.executable, "-m", "polarmask_pipelines", "run"]
    return [*module, "--out", str(place.runs / name), "--preset", "tiny", *flags]


def run(place, name, *settings, code=0, **parameters):
    done = subprocess.run(
        command_for(place, name, *settings, **parameters),
        capture_output=True,
        text=True,
        timeout=240,
    )
    log = place.runs / name / "run.log"
    assert done.returncode == code, done.stdout + done.stderr + log.read_text()
    summary = json.loads((place.runs / name / "summary.json").read_text())
    status = {step["name"]: step["status"] for step in summary["steps"]}
    return SimpleNamespace(out=done.stdout, summary=summary, status=status)


@pytest.fixture(scope="module")
def first(place):
    return run(place, "first")


@pytest.fixture
def champion(place, first):
    """The version that the first run promoted; afterwards it is served and champion as before."""
    version = place.registry.champion().version
    image = Path(first.summary["sample"]).read_bytes()
    yield version
    assert place.registry.champion().version == version
    answer = ask_champion(place.server, name="polarmask", registry=place.registry, image=image)
    assert answer.answer["model"]["version"] == version


def test_first_run_ends_with_a_model_that_answers(place, first, champion):
    others = {name for name, status in first.status.items() if status != "succeeded"}
    assert others == {"record-stop"}  # the gate passed
    assert first.summary["gate"]["passed"] is True
    assert first.summary["champion"] == champion
    assert first.summary["server_answer"]["model"]["version"] == champion
    assert is_serving(place.server)


def test_printed_curl_line_gives_the_printed_answer(first, champion):
    command = re.search(r"^\$ (curl .*)$", first.out, re.MULTILINE)[1]
    answer = subprocess.run(
        [*shlex.split(command), "--silent", "--fail", "--noproxy", "*"],
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    assert json.loads(answer) == first.summary["server_answer"]


def test_each_step_is_one_line(first):
    lines = first.out.split("\n\n")[0].splitlines()
    progress = re.compile(r"train +step \d+/")  # on a slow machine
    lines = [line for line in lines if not progress.match(line)]
    assert [line.split()[0] for line in lines] == [
        name for name, status in first.status.items() if status != "skipped"
    ]
    assert "mask AP" in next(line for line in lines if line.startswith("evaluate "))


def test_summary_names_the_files_for_people(place, first):
    summary = first.summary
    assert 0 <= summary["mask_ap"] <= summary["mask_ap50"] <= 1
    assert summary["seconds"] >= sum(step["seconds"] for step in summary["steps"]) - 1
    assert "<!doctype html>" in Path(summary["report"]).read_text()
    assert cv2.imread(summary["overlay"]) is not None
    assert (Path(summary["model"]) / "model.safetensors").is_file()
    pages = {path.name for path in (place.runs / "first" / "reports").iterdir()}
    names = ("data", "labels", "training", "evaluation", "comparison", "engines")
    assert pages == {f"{name}.html" for name in names}
    index = (place.runs / "first" / "index.html").read_text()
    assert all(f'href="reports/{name}.html"' in index for name in names)


def test_registered_champion_records_data_code_and_metrics(place, first):
    facts = place.registry.champion().facts
    assert facts.metrics["mask_ap"] == first.summary["mask_ap"]
    assert facts.config["optim"]["batch_size"] == 4
    assert len(facts.data_commit) == 40
    assert facts.data_hash.endswith(".dir")
    assert len(facts.code_version) == 16


def test_second_run_reports_that_nothing_changed_and_reuses_what_it_can(place, champion):
    second = run(place, "second")
    assert "nothing changed" in second.out
    assert second.summary["nothing_changed"]
    reused = {name for name, status in second.status.items() if status == "reused"}
    assert reused == {
        *("ingest-coco", "precompute-shards", "precompute-rays"),
        *("train", "evaluate", "measure-engines"),
    }
    assert len(promotions_of(place.registry)) == 1


@pytest.mark.slow
def test_with_run_only_if_changed_an_unchanged_run_stops_after_resolving_the_data(place, champion):
    again = run(place, "again", run_only_if_changed="true")
    assert "nothing to do: data" in again.out
    assert "nothing changed" in again.out
    assert again.summary["nothing_changed"]
    ran = {name for name, status in again.status.items() if status == "succeeded"}
    assert ran == {"preflight", "resolve-data", "check-changed", "notify"}
    changed = run(place, "changed", code=3, run_only_if_changed="true", eval_floor_ap="0.99")
    assert changed.status["remember-run"] == "succeeded"  # although the gate stopped it
    stopped = run(place, "stopped", run_only_if_changed="true", eval_floor_ap="0.99")
    assert stopped.status["train"] == "skipped"


def test_candidate_below_the_floor_is_not_deployed(place, champion):
    stopped = run(place, "below-floor", code=3, eval_floor_ap="0.99")
    assert stopped.status["deploy-torchserve"] == "skipped"
    _, verdict, *_ = stopped.out.split("\n\n")
    assert verdict.startswith("STOPPED by the gate: mask AP")
    assert "curl" not in stopped.out
    assert f"the champion, version {champion}, still answers at http" in stopped.out
    assert stopped.summary["gate"]["passed"] is False
    assert "is below the floor 0.9900" in stopped.summary["gate"]["reason"]
    assert "is below the floor 0.9900" in stopped.out
    assert stopped.summary["champion"] == champion


@pytest.mark.slow
def test_champion_that_does_not_answer_fails_the_run_with_its_summary(place, champion):
    command = command_for(place, "strange", deploy_model_name="other", eval_floor_ap="0.99")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "serves polarmask, not other" in done.stderr
    summary = json.loads((place.runs / "strange" / "summary.json").read_text())
    assert summary["server_answer"] is None
    assert summary["mask_ap"] is not None


@pytest.mark.slow
def test_a_run_starts_from_the_champion_and_a_candidate_that_is_stopped_keeps_its_record(
    place, champion
):
    stopped = run(place, "from-champion", code=3, train_init="champion", eval_floor_ap="0.99")
    assert f"training starts from champion {champion}" in stopped.out
    card = json.loads((place.runs / "from-champion" / "model" / "model.json").read_text())
    assert card["provenance"]["init_from"] == f"champion {champion}"
    log = (place.runs / "from-champion" / "run.log").read_text()
    assert "100% of the parameters; new: no tensors, no categories" in log
    newest, *_ = known_models(place.registry)
    assert (newest.state, newest.record) == (STOPPED, None)
    assert newest.note.startswith("the gate: mask AP")
    assert f"version {newest.version}" in stopped.out
    # Fixed by the archive's hash: run again, it is the same training.
    again = run(place, "from-champion-again", code=3, train_init="champion", eval_floor_ap="0.99")
    assert again.status["train"] == "reused"


@pytest.fixture
def better(place, first, tmp_path):
    """Put a better champion into service: the first model's twin with a higher number."""
    model = shutil.copytree(first.summary["model"], tmp_path / "model")
    card = json.loads((model / "model.json").read_text())
    card["training"]["seconds"] += 1
    (model / "model.json").write_text(json.dumps(card))
    before = place.registry.champion()
    return deploy(
        lambda: register_model(
            model, name="polarmask", metrics={"mask_ap": 0.99}, registry=place.registry
        ),
        str(place.server),
        name="polarmask",
        registry=place.registry,
        expected=before.version,
        image=Path(first.summary["sample"]).read_bytes(),
    ).version


def test_candidate_below_the_champion_is_not_deployed(place, first, better):
    assert better != first.summary["champion"]
    stopped = run(place, "worse", code=3)
    assert stopped.status["deploy-torchserve"] == "skipped"
    assert "is below the champion's 0.9900" in stopped.out
    assert place.registry.champion().version == better
    assert stopped.summary["server_answer"]["model"]["version"] == better


def test_failing_step_is_named_with_its_error_and_leaves_the_champion(place, champion):
    failing = subprocess.run(
        command_for(place, "failing", data_revision="no-such-branch"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert failing.returncode == 1
    assert "resolve-data" in failing.stdout.splitlines()[-2]
    assert "FAILED" in failing.stdout
    assert "UnknownRevisionError" in failing.stderr
    assert "no-such-branch" in failing.stderr
    summary = json.loads((place.runs / "failing" / "summary.json").read_text())
    assert {"name": "train", "seconds": 0.0, "status": "skipped"} in summary["steps"]


@contextmanager
def training(place, name):
    """Start a run that would train for long; yield it and its processes once it trains."""
    command = command_for(place, name, "optim.epochs=1000 optim.batch_size=4")
    pipe = subprocess.PIPE
    with started(command, stdout=pipe, stderr=pipe, text=True) as running:
        log = place.runs / name / "run.log"
        deadline = time.monotonic() + 120
        while not (log.exists() and "step=" in log.read_text()):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processes = psutil.Process(running.pid).children(recursive=True)
        assert len(processes) >= 3  # step, torchrun, trainer
        yield running, processes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_run_and_all_its_processes(place, champion, number):
    with training(place, number.name) as (running, processes):
        running.send_signal(number)
        steps, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in errors
    assert not [process for process in processes if process.is_running()]
    assert is_serving(place.server)  # it ran before
    # Labels do not depend on the changed settings.
    assert re.search(r"^precompute-rays .* reused", steps, re.MULTILINE)


@pytest.mark.slow
def test_killed_run_leaves_no_training_behind(place, champion):
    with training(place, "killed") as (running, processes):
        running.kill()
        running.communicate(timeout=60)
    assert not psutil.wait_procs(processes, timeout=30)[1]
    assert is_serving(place.server)


@pytest.mark.slow
def test_labels_made_by_two_pods_equal_those_made_by_one(place, first):
    halves = run(place, "halves", code=3, label_pods="2", eval_floor_ap="0.99")
    steps = [step["name"] for step in halves.summary["steps"]]
    assert steps.count("precompute-shards") == 2
    assert "shards 1/2" in halves.out
    assert "shards 2/2" in halves.out
    stores = [
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for name in ("first", "halves")
        for folder in (place.runs / name / "artifacts").glob("*/precompute-rays/labels")
    ]
    assert len(stores) == 2
    assert stores[0] == stores[1]
