"""`images/build.sh` writes the digests that a registry gave to what it pushed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from polarmask_components.checks.image_reference import problem_of_image

SCRIPT = Path(__file__).parents[2] / "images" / "build.sh"
DOCKER = """#!/bin/sh
case "$1 $2" in
  "image inspect") [ -z "$WITHOUT_DIGEST" ] || exit 0
    name=${5%:*}; name=${name#docker.io/} # as Docker does
    printf 'other.example/%s@sha256:%064d\\n%s@sha256:%064d\\n\\n' "$name" 0 "$name" 1 ;;
esac
"""


@pytest.fixture
def build(tmp_path):
    """Return a function that runs the script with a Docker that does nothing."""
    (tmp_path / "images").mkdir()
    shutil.copy(SCRIPT, tmp_path / "images")
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)

    def run(**settings):
        environment = os.environ | {"DOCKER": str(docker)} | settings
        command = ["sh", tmp_path / "images" / "build.sh"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("registry", ["registry.example/team/", "docker.io/team/", "team/"])
def test_pushed_images_are_named_by_the_digests_of_their_registry(build, tmp_path, registry):
    done = build(PUSH="yes", IMAGE_REGISTRY=registry)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "dist" / "images.env").read_text().splitlines()
    images = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert list(images) == [f"POLARMASK_{name}_IMAGE" for name in ("OPS", "TRAINER", "SERVING")]
    digest = f"@sha256:{1:064d}"
    assert images["POLARMASK_OPS_IMAGE"] == f"{registry}polarmask-ops{digest}"
    assert [problem_of_image(image) for image in images.values()] == [""] * 3


def test_without_a_push_there_are_no_digests(build, tmp_path):
    assert build().returncode == 0
    assert not (tmp_path / "dist").exists()


def test_a_push_without_a_digest_is_an_error(build, tmp_path):
    done = build(PUSH="yes", WITHOUT_DIGEST="yes")
    assert done.returncode == 1
    assert "names no digest" in done.stderr
    assert not (tmp_path / "dist" / "images.env").exists()
