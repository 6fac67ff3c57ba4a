"""Rules that import-linter can't state."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    ROOT / "model" / "polarmask",
    ROOT / "components" / "polarmask_components",
    ROOT / "pipelines" / "polarmask_pipelines",
    ROOT / "serving" / "polarmask_serving",
]
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
STEPS = sorted(
    path
    for path in (ROOT / "components" / "polarmask_components" / "steps").glob("*.py")
    if "@component" in path.read_text() or "@dsl.component" in path.read_text()
)


def name_of(path):
    return str(path.relative_to(ROOT))


def test_the_search_for_modules_and_steps_finds_them():
    assert len(MODULES) > 50
    assert {"train", "evaluate", "gate_model", "notify"} <= {path.stem for path in STEPS}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_has_at_most_400_lines_and_says_what_it_is_for(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", STEPS, ids=name_of)
def test_a_step_file_imports_only_kfp_the_standard_library_and_its_images(path):
    """KFP ships a step's source: what its module imports on top is not there when it runs."""
    allowed = {"kfp", "polarmask_components", *sys.stdlib_module_names}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in allowed
            if node.module.startswith("polarmask_components"):
                assert node.module == "polarmask_components.images"


@pytest.mark.parametrize("path", STEPS, ids=name_of)
def test_a_step_body_holds_no_algorithm(path):
    steps = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert len(steps) == 1, "one step a file"
    statements = [node for node in ast.walk(steps[0]) if isinstance(node, ast.stmt)]
    assert len(statements) <= 30


def test_the_handler_defines_one_class():
    """TorchServe refuses a handler module with two."""
    path = ROOT / "serving" / "polarmask_serving" / "torchserve" / "polarmask_handler.py"
    nodes = ast.walk(ast.parse(path.read_text()))
    assert sum(isinstance(node, ast.ClassDef) for node in nodes) == 1


@pytest.mark.parametrize(
    "module", ["config.settings", "evaluation.gate", "config.presets", "errors"]
)
def test_what_gates_and_pipelines_read_needs_no_torch(module):
    code = f"import sys, polarmask.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
