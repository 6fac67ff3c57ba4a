"""The tutorials are right: their commands exist, and following them works."""

import csv
import json
import re
import runpy
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import polarmask_components.commands.models as models
import polarmask_pipelines.__main__ as pipelines
import polarmask_serving.__main__ as serving
from polarmask.cli import build_parser, main
from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.data.coco import Category, load_coco
from polarmask.importing.detect import read_source
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.network.detector import PolarMask
from polarmask_components.registry.registry import open_registry
from polarmask_pipelines.parameters import check_parameters, read_parameters

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
SAMPLE_DATA = TUTORIALS / "sample_data.py"
NAMES = ("cells", "fine-tune", "your-pipeline")
PROGRAMS = {"git", "dvc", "curl", "echo", "cd"}


@pytest.fixture
def first_tries(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import first_tries

    return first_tries


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_has_at_most_five_commands(first_tries, name):
    counted = [line for line in first_tries.lines_of(name) if line.counts]
    assert 3 <= len(counted) <= 5


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_takes_the_commands_of_a_tutorial(first_tries, name):
    for line in first_tries.lines_of(name):
        program, *arguments = shlex.split(line.text)
        if program == "polarmask":
            parse(arguments)
        elif program == "python":
            assert arguments[0].endswith(str(SAMPLE_DATA.relative_to(ROOT)))
        else:
            assert program in PROGRAMS, line.text


def parse(arguments):
    command, *rest = arguments
    if command == "serve":
        serving.build_parser().parse_args(arguments)
    elif command == "pipeline":
        options = pipelines.build_parser().parse_args(rest)
        parameters = read_parameters(getattr(options, "param", []))
        override(tiny(), parameters.get("train_set", "").split())
        check_parameters({"deploy_target": "runs", "train_on": "here", **parameters})
    elif command == "models":
        models.build_parser().parse_args(rest)
    else:
        options = build_parser().parse_args(arguments)
        override(tiny(), getattr(options, "set", []))


@pytest.fixture
def sample_data(monkeypatch, capsys):
    """Return a function that runs the tutorials' script, and returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample_data.py", *map(str, arguments)])
        runpy.run_path(str(SAMPLE_DATA), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_sample_masks_hold_the_annotated_objects(sample_data, tmp_path):
    printed = sample_data("--out", tmp_path, "--masks", "--train", 3, "--val", 1)
    source = read_source(tmp_path / "annotated", kind="auto", category="nucleus", masks=None)
    images = list(source.images)
    assert not source.problems
    assert printed.startswith(f"3 images, {sum(len(each.objects) for each in images)} nuclei\n")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["new-001.png"]


def test_the_import_prints_what_the_tutorial_shows(
    first_tries, sample_data, tmp_path, monkeypatch, capsys
):
    make_data, command, *_ = (shlex.split(line.text) for line in first_tries.lines_of("cells"))
    page = (TUTORIALS / "cells.md").read_text()
    (shown,) = re.findall(r"^polarmask import .*\n```\n\n```text\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    sample_data(*make_data[2:])
    assert main(command[1:]) == 0
    assert capsys.readouterr().out == shown


def test_stained_samples_are_dark_on_white(sample_data, tmp_path):
    sample_data("--out", tmp_path, "--stained", "--train", 2, "--val", 1)
    data = load_coco(tmp_path, "train")
    assert len(data.images) == 2
    for image in data.images:
        pixels = cv2.imread(str(data.image_path(image)))
        assert np.median(pixels) > 200
        assert pixels.min() < 60


def cells_of_the_notebook():
    notebook = json.loads((TUTORIALS / "counts.ipynb").read_text())
    return ["".join(each["source"]) for each in notebook["cells"] if each["cell_type"] == "code"]


def run_notebook():
    """Run the cells in one namespace, as a kernel does, and return it."""
    namespace = {}
    for number, cell in enumerate(cells_of_the_notebook(), start=1):
        exec(compile(cell, f"counts.ipynb, cell {number}", "exec"), namespace)
    return namespace


def test_the_notebook_runs(sample_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample_data("--out", "cells", "--masks", "--train", 1, "--val", 2)
    run = tiny()
    run = replace(
        run,
        model=replace(run.model, channels=32, tower_depth=1, num_classes=1),
        postprocess=replace(run.postprocess, max_instances=20),
    )
    network = PolarMask(run.model)
    network.head.class_logit.bias.data.fill_(3.0)  # it has learned nothing, and is sure of it
    save_model(Path("runs/cells/model"), network, ModelCard(run, (Category(1, "nucleus"),)))
    done = run_notebook()
    assert set(done["counts"]) == {"new-001.png", "new-002.png"}
    assert len(list(Path("runs/cells/notebook").iterdir())) == 5


@pytest.fixture
def follow(first_tries, tmp_path):
    """Return a function that follows a shortened tutorial, and returns the checkout it ran in."""
    checkout = tmp_path / first_tries.CHECKOUT
    checkout.mkdir()
    for name in ("data", "docs"):
        (checkout / name).symlink_to(ROOT / name)

    def run(name):
        took = first_tries.follow(name, checkout, replaced=first_tries.SHORTENED)
        return checkout, {each.line.text: each.output for each in took}

    return run


@pytest.mark.slow
def test_masks_become_counts_and_the_notebook_takes_the_model(follow, monkeypatch):
    checkout, _ = follow("cells")
    found = checkout / "runs/cells/found"
    with (found / "counts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 20
    assert len(list(found.glob("*_overlay.jpg"))) == 20
    monkeypatch.chdir(checkout)
    assert len(run_notebook()["counts"]) == 20


@pytest.mark.slow
def test_a_model_is_fine_tuned_and_served(follow):
    _, output = follow("fine-tune")
    (answer,) = (text for command, text in output.items() if command.startswith("curl"))
    assert json.loads(answer)["image"] == {"height": 256, "width": 256}


@pytest.mark.slow
def test_more_data_make_a_new_champion_and_the_first_one_comes_back(follow):
    checkout, output = follow("your-pipeline")
    runs = checkout.parent / "my-cells" / "runs"
    first, second = (
        json.loads((runs / name / "summary.json").read_text())["champion"]
        for name in ("first", "second")
    )
    assert first != second
    assert f"version {first} is the champion" in output["polarmask models rollback"]
    assert open_registry(str(runs / "shared" / "registry")).champion_version() == first
