"""The documentation is right: its commands run, its targets, files and links exist."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from polarmask.cli import build_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*/README.md")
    for path in ROOT.glob(pattern)
    if not path.is_relative_to(ROOT / ".venv")
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands_marked_as_tested():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```bash tested\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_the_readme_s_commands_run_one_after_the_other(tmp_path):
    assert (ROOT / "data" / "images").is_dir(), "run `make data` first"
    (tmp_path / "data").symlink_to(ROOT / "data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands = commands_marked_as_tested()
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs/first/evaluation.html").is_file()
    assert (tmp_path / "runs/first/overlays/contact_sheet.jpg").is_file()


def test_every_make_target_says_what_it_does_and_the_named_ones_exist():
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+)", helped.stdout, re.MULTILINE))
    assert {"demo", "test", "check", "setup", "compile"} <= listed
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= TARGETS, page


def test_links_to_files_lead_somewhere():
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if not target.startswith("http")
    ]
    assert len(links) > 50
    assert [(str(p), target) for p, target in links if not (p.parent / target).exists()] == []


def test_every_command_is_in_the_reference_and_in_the_readme_or_a_how_to():
    (subparsers,) = (each for each in build_parser()._actions if each.dest == "command")
    commands = list(subparsers.choices)
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text()
    pages = [ROOT / "README.md", *(ROOT / "docs" / "how-to").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    assert {"train", "import-original"} <= set(commands)
    assert [command for command in commands if f"polarmask {command}" not in text] == []
    assert [command for command in commands if f"`polarmask {command}`" not in reference] == []


def test_the_readme_is_short_enough_to_finish():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_each_question_of_a_newcomer_is_answered_by_one_file():
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Find your way") : readme.index("## Documentation")]
    answers = re.findall(r"^\| ([^|]+\?) \| \[[^]]+\]\(([^)]+)\)", table, re.MULTILINE)
    assert len(answers) == 10
    assert [file for _, file in answers if not (ROOT / file).is_file()] == []


def test_tables_of_speed_and_accuracy_are_those_of_the_measured_json(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    generated = runpy.run_path(str(ROOT / "benchmarks" / "pages.py"))["pages"]()
    assert {page.name for page in generated} == {"README.md", "speed.md", "accuracy.md"}
    for page, text in generated.items():
        assert page.read_text() == text, f"{page.name}: run `python benchmarks/pages.py`"


def test_the_index_links_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index)}
    pages = set((ROOT / "docs").rglob("*.md")) | set((ROOT / "docs").rglob("*.json"))
    pages -= {ROOT / "docs" / "index.md"} | set((ROOT / "docs" / "adr").iterdir())
    assert [str(page.relative_to(ROOT)) for page in sorted(pages - linked)] == []


def test_every_fault_is_in_the_reference():
    listed = re.findall(r"^\| ([TD]\d\d) \|", (ROOT / "docs/reference/faults.md").read_text(), re.M)
    tested = {
        found.upper()
        for path in (ROOT / "tests" / "faults").glob("test_*.py")
        for found in re.findall(r'(?:^def test_|")([TtDd]\d\d)[ _-]', path.read_text(), re.M)
    }
    assert listed == sorted(tested, key=lambda fault: (fault[0] == "D", fault))
    assert len(listed) >= 40


def test_the_number_of_cluster_faults_is_that_of_the_rows():
    page = (ROOT / "docs/reference/faults.md").read_text()
    (stated,) = re.findall(r"^(\d+) cluster faults", page, re.M)
    assert int(stated) == len(re.findall(r"^\| [TD]\d\d \|", page, re.M))


def test_every_reported_fault_names_its_test():
    rows = re.findall(
        r"^\| ([FOMm]\d+) \|.*\| `(test_\w+\.py)` `(test_\w+)` \|$",
        (ROOT / "docs/reference/faults.md").read_text(),
        re.M,
    )
    missing = [
        (fault, file, test)
        for fault, file, test in rows
        if not any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").rglob(file))
    ]
    assert missing == []


def texts_of(path):
    """Return the texts in a module, with "..." in place of values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if hasattr(part, "value") and isinstance(part, ast.Constant) else "..."
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize(
    ("page", "number"), [("troubleshooting.md", 20), ("how-to/run-on-a-cluster.md", 8)]
)
def test_the_code_has_every_message_of_the_page(page, number):
    text = (ROOT / "docs" / page).read_text()
    page = text[text.find("## When you see X") :].split("\n## ")[0] if "how-to" in page else text
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    areas = (
        "model/polarmask",
        "serving/polarmask_serving",
        "components/polarmask_components",
        "pipelines/polarmask_pipelines",
    )
    texts = [
        text for area in areas for path in (ROOT / area).rglob("*.py") for text in texts_of(path)
    ]
    patterns = {m: re.compile(".*".join(map(re.escape, m.split("...")))) for m in messages}
    assert len(messages) > number
    assert [m for m, pattern in patterns.items() if not any(map(pattern.search, texts))] == []


@pytest.mark.parametrize(
    ("page", "title", "package"),
    [
        ("docs/explanation/architecture.md", "## Model", "model/polarmask"),
        ("docs/explanation/architecture.md", "## Serving", "serving/polarmask_serving"),
        ("docs/explanation/architecture.md", "## Components", "components/polarmask_components"),
        ("model/README.md", "## Where things are", "model/polarmask"),
        ("components/README.md", "| folder | question |", "components/polarmask_components"),
    ],
)
def test_tables_of_folders_name_every_folder_and_no_other(page, title, package):
    text = (ROOT / page).read_text()
    section = text[text.index(title) :].split("\n## ")[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert named - {"cli", "polarmask"} == folders
