"""Rules that import-linter can't state."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(ROOT.glob("*/polarmask*/**/*.py"))
STEPS = [
    path
    for path in MODULES
    if path.is_relative_to(ROOT / "components/polarmask_components/steps")
    and "@component" in path.read_text().replace("@dsl.component", "@component")
]
OF_A_STEP = {"kfp", *sys.stdlib_module_names}
MAX_LINES = 400
MAX_STATEMENTS = 30


def syntax_of(path):
    return ast.parse(path.read_text())


def listed(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def test_the_search_for_modules_and_steps_finds_them():
    assert len(MODULES) > 50
    assert len({path.relative_to(ROOT).parts[0] for path in MODULES}) == 4
    assert {"train", "evaluate", "gate_model", "notify"} <= {path.stem for path in STEPS}


def test_no_module_has_more_than_400_lines():
    assert listed(p for p in MODULES if len(p.read_text().splitlines()) > MAX_LINES) == []


def test_every_module_states_its_purpose():
    assert listed(path for path in MODULES if not ast.get_docstring(syntax_of(path))) == []


def test_a_step_file_imports_only_kfp_the_standard_library_and_its_images():
    """KFP ships a step's source: other imports of its module are missing when it runs."""
    assert listed(path for path in STEPS if foreign_imports(path)) == []


def foreign_imports(path):
    """Return the modules that a step's file imports at its top and may not."""
    names = set()
    for node in syntax_of(path).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    allowed = {name for name in names if name.split(".")[0] in OF_A_STEP}
    return names - allowed - {"polarmask_components.images"}


def test_a_step_file_holds_one_step_without_an_algorithm():
    assert listed(path for path in STEPS if len(functions(path)) != 1) == []
    assert listed(p for p in STEPS if statements(functions(p)[0]) > MAX_STATEMENTS) == []


def functions(path):
    return [node for node in syntax_of(path).body if isinstance(node, ast.FunctionDef)]


def statements(function):
    return sum(isinstance(node, ast.stmt) for node in ast.walk(function))


def test_configs_gates_and_errors_load_without_torch():
    """import-linter looks for imports; this also finds modules that are loaded by name."""
    modules = [f"polarmask.{each}" for each in ("config.settings", "config.presets", "errors")]
    code = (
        f"import importlib, sys\nfor each in {[*modules, 'polarmask.evaluation.gate']}:\n"
        "    importlib.import_module(each)\n    assert 'torch' not in sys.modules, each"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
