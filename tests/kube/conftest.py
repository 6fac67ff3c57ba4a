"""A server for each test, and small objects to put into it."""

import pytest

from kube.server import KubeServer


@pytest.fixture
def server():
    with KubeServer() as running:
        yield running


def pod_of(command, name="a-pod", *, container=None, **spec):
    """Return a pod with one container that runs a shell command; `spec` is of the pod."""
    main = {"name": "main", "image": "any", "command": ["sh", "-c", command]} | (container or {})
    return {"metadata": {"name": name}, "spec": {"containers": [main], **spec}}
