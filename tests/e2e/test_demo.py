"""A new user's first command: fresh clone, fresh environment, a folder with a space."""

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    clone = tmp_path_factory.mktemp("a user") / "polar mask"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "KEEP"}
    done = subprocess.run(
        ["make", "demo"], cwd=clone, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return clone, done.stdout


@pytest.mark.slow
def test_the_demo_reaches_its_promise(demo):
    clone, printed = demo
    summary = json.loads((clone / "runs/demo/summary.json").read_text())
    assert summary["mask_ap"] >= 0.50
    assert summary["mask_ap50"] >= 0.85
    others = [step["name"] for step in summary["steps"] if step["status"] != "succeeded"]
    assert others == ["record-stop"]  # the gate passed
    assert summary["server_answer"]["instances"]
    for name in ("report", "overlay", "model"):
        assert Path(summary[name]).exists()
    assert "curl" in printed


@pytest.mark.slow
def test_the_index_of_the_demo_links_its_pages(demo):
    clone, _ = demo
    index = (clone / "runs/demo/index.html").read_text()
    for name in ("data", "labels", "training", "evaluation", "comparison", "engines"):
        page = f"reports/{name}.html"
        assert f'href="{page}"' in index
        assert (clone / "runs/demo" / page).is_file()


@pytest.mark.slow
def test_the_demo_leaves_no_process(demo):
    clone, _ = demo
    left = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(str(clone) in part for part in process.info["cmdline"] or ()):
            left.append(process.info)
    assert not left


@pytest.mark.slow
def test_a_second_demo_says_that_nothing_changed(demo):
    clone, _ = demo
    done = subprocess.run(
        ["make", "demo"], cwd=clone, capture_output=True, text=True, check=True, timeout=600
    )
    assert "nothing changed" in done.stdout
    steps = json.loads((clone / "runs/demo/summary.json").read_text())["steps"]
    status = {step["name"]: step["status"] for step in steps}
    assert status["train"] == "reused"
