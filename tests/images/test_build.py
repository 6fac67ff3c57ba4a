"""What `make images` reports where it can't build."""

import os
import subprocess
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
