"""A test double of Kubeflow Pipelines' API, and the command line pointed to it."""

import kfp
import pytest

from kube.kfp_server import KfpServer
from polarmask_pipelines import kfp_client
from polarmask_pipelines.commands import kubeflow
from polarmask_pipelines.package import compile_package


@pytest.fixture(scope="session")
def package():
    """The compiled pipeline, once for all tests."""
    return compile_package({})


@pytest.fixture
def no_user_settings(monkeypatch, tmp_path):
    """Hide the settings in the user's home and environment from `kfp.Client`."""
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    for name in ("KFP_HOST", "KFP_NAMESPACE", "KFP_TOKEN", "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kfp_server(no_user_settings, monkeypatch, package):
    """Start a server and set KFP_HOST to its address."""
    monkeypatch.setattr(kubeflow, "compile_package", lambda _: package)
    monkeypatch.setattr(kfp_client, "_POLL_SECONDS", 0.01)
    with KfpServer() as server:
        monkeypatch.setenv("KFP_HOST", server.url)
        yield server
