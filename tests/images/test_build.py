"""What goes into images, and what `make images` reports where it can't build."""

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("docker", "expected_text"),
    [("no-such-docker", "is not installed"), ("false", "does not answer")],
)
def test_make_images_reports_what_is_missing(docker, expected_text):
    done = subprocess.run(
        ["make", "images"],
        cwd=ROOT,
        env={**os.environ, "DOCKER": docker},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert f"error: {docker} {expected_text}" in done.stderr


@pytest.fixture
def install(tmp_path):
    """Return a function that runs `install-packages` with a uv that prints what it is given."""
    uv, python = tmp_path / "uv", tmp_path / "python"
    uv.write_text("#!/bin/sh\ncat\n")
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    for program in (uv, python):
        program.chmod(0o755)
    script = (ROOT / "images" / "install-packages").read_text()
    script = script.replace("/opt/tools/bin/", "").replace("cd /lock\n", "")

    def run(*extras):
        return subprocess.run(
            ["sh", "-c", script, "install-packages", *extras],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_an_image_gets_the_packages_of_its_extras_alone(install):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    done = install("components", "labels")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*extras["components"], *extras["labels"]]


def test_an_unknown_extra_ends_the_build(install):
    done = install("model", "nonsense")
    assert done.returncode != 0
    assert "nonsense" in done.stderr
    assert done.stdout == ""
