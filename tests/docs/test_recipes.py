"""The recipes of CONTRIBUTING are complete: following one to the letter is enough."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

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
