"""The three images, built once from nothing but this checkout and the package index."""

import subprocess
from pathlib import Path

import pytest

from docker_engine import engine, make_base
from polarmask_components.images import TRAINER_IMAGE

ROOT = Path(__file__).parents[2]
IMAGES = ("ops", "trainer", "serving")
TAG = TRAINER_IMAGE.partition(":")[2]


@pytest.fixture(scope="session")
def docker(tmp_path_factory):
    """An engine."""
    with engine(tmp_path_factory.mktemp("docker")) as docker:
        yield docker


@pytest.fixture(scope="session")
def base(docker, tmp_path_factory):
    """Debian with Python and nothing else."""
    return make_base(docker, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def images(docker, base):
    """Build all images; return their names."""
    flags = f"--network host --progress plain --build-arg BASE={base}"
    done = subprocess.run(
        ["make", "images"],
        cwd=ROOT,
        env={**docker.environment, "BUILD_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return {target: f"polarmask-{target}:{TAG}" for target in IMAGES}


@pytest.fixture(scope="session")
def run(docker, images):
    """Run a command in an image as a pod of ours runs it: non-root, read-only, without network."""

    def run(image, *command, mounts=(), check=True):
        flags = [f"--volume={each}" for each in mounts]
        return docker(
            *("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"),
            *("--security-opt=no-new-privileges", "--env=OMP_NUM_THREADS=1", *flags),
            *("--hostname=pod", "--add-host=pod:127.0.0.1"),  # torch looks its own name up
            *("--entrypoint", command[0], images[image], *command[1:]),
            check=check,
        )

    return run
