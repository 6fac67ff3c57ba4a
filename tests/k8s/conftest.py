"""The overlays, rendered once; nobody may change what they get."""

import shutil
from functools import cache
from pathlib import Path

import pytest

from manifest_rules import render

OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"

_rendered = cache(render)


@pytest.fixture(params=sorted(path.name for path in OVERLAYS.iterdir()))
def overlay(request):
    """Objects of each overlay in turn."""
    return _overlay(request.param)


@pytest.fixture
def kind():
    """Objects of the overlay for a cluster to try things on."""
    return _overlay("kind")


@pytest.fixture
def gpu():
    """Objects of the overlay for a cluster with GPUs."""
    return _overlay("gpu")


def _overlay(name):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return _rendered(OVERLAYS / name)
