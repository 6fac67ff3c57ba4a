"""The recipes of CONTRIBUTING are complete: following one to the letter is enough."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path

import yaml

from polarmask.cli import commands
from polarmask_components.parameters.training_request import TrainingRequest

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "CONTRIBUTING.md").read_text()
STEP = '''"""Step: how many images does the data hold?"""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def count_images(dataset: dsl.Input[dsl.Dataset]) -> int:
    """Count the images of a COCO folder."""
    from pathlib import Path

    return len(list((Path(dataset.path) / "images").iterdir()))
'''


def recipe(title):
    """Return the numbered places of a recipe."""
    text = RECIPES[RECIPES.index(f"**{title}.**") :]
    return re.findall(r"^\d\. `([^`]+)`", text.split("\n\n**")[0], re.MULTILINE)


def test_the_places_of_a_new_step_exist_and_are_at_most_four():
    places = recipe("Add a step")
    assert 1 <= len(places) <= 4
    assert [
        place for place in places if not (ROOT / place.replace("NAME", "gate_model")).exists()
    ] == []


def test_a_step_added_by_the_recipe_compiles(tmp_path):
    for package in ("components/polarmask_components", "pipelines/polarmask_pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package)
    step, pipeline, *_ = recipe("Add a step")
    (tmp_path / step.replace("NAME", "count_images")).write_text(STEP)
    source = (tmp_path / pipeline).read_text()
    call = 'dataset = ingested.outputs["dataset"]\n'
    added = f'{call}            count_images(dataset=ingested.outputs["dataset"])\n'
    imported = "from polarmask_components.steps.count_images import count_images\n"
    assert source.count(call) == 1
    first_import = source.index("from polarmask_components.")
    source = source[:first_import] + imported + source[first_import:]
    (tmp_path / pipeline).write_text(source.replace(call, added))
    paths = [str(tmp_path / area) for area in ("components", "pipelines")]
    subprocess.run(
        [sys.executable, "-m", "polarmask_pipelines", "compile", "--out", tmp_path / "out.yaml"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        check=True,
    )
    compiled, *_ = yaml.safe_load_all((tmp_path / "out.yaml").read_text())
    assert "comp-count-images" in compiled["components"]


def parameters_of(step):
    module = importlib.import_module(f"polarmask_components.steps.{step}")
    return set(signature(getattr(module, step).python_func).parameters)


def test_a_training_knob_passes_through_the_pipeline_preflight_and_the_request_only():
    places = recipe("Add a pipeline parameter or a training knob")
    assert [Path(place).name for place in places] == [
        "train_and_deploy.py",
        "preflight.py",
        "training_request.py",
    ]
    assert all((ROOT / place).is_file() for place in places)
    knobs = {field.name for field in fields(TrainingRequest)}
    steps = {path.stem for path in (ROOT / recipe("Add a step")[0]).parent.glob("[a-z]*.py")}
    assert knobs <= parameters_of("preflight")
    assert len(steps) > 10
    steps -= {"preflight", "notify"}  # the exit step ends the job, whatever preflight found
    assert {step: parameters_of(step) & knobs for step in steps} == {step: set() for step in steps}


def test_a_step_is_named_in_the_places_of_the_recipe_and_nowhere_else():
    step, pipeline, *_ = recipe("Add a step")
    # These show more about some steps; a step works without them.
    optional = {"console.py", "summary.py"}
    modules = [
        path
        for area in ("model", "serving", "components", "pipelines")
        for path in (ROOT / area).rglob("*.py")
    ]
    sources = {path: path.read_text() for path in modules}
    for name in (path.stem for path in (ROOT / step).parent.glob("[a-z]*.py")):
        imports = re.compile(rf"polarmask_components\.steps\.{name}\b")
        importing = {path.name for path, text in sources.items() if imports.search(text)}
        quoted = {
            path.name for path, text in sources.items() if f'"{name.replace("_", "-")}"' in text
        }
        assert importing == {Path(pipeline).name}, name
        if "_" in name:  # others are words of the command line, too
            assert quoted <= optional, name


def test_every_command_is_one_module_and_one_row():
    modules = {path.stem for path in (ROOT / "model/polarmask/commands").glob("*_command.py")}
    assert modules == {f"{name.replace('-', '_')}_command" for name in commands()}
