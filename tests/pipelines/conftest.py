"""Kubeflow Pipelines' API, imitated, and the command line pointed to it."""

import kfp
import pytest

from kube.kfp_server import KfpServer
from polarmask_pipelines import kfp_client
from polarmask_pipelines.package import compile_package


@pytest.fixture(scope="session")
def package():
    """The compiled pipeline, once for all tests."""
    return compile_package({})


@pytest.fixture
def no_settings_of_the_user(monkeypatch, tmp_path):
    """Keep what lies in the user's home and environment away from `kfp.Client`."""
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KFP_HOST", "KFP_NAMESPACE", "KFP_TOKEN", "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kfp_server(no_settings_of_the_user, monkeypatch, package):
    """Start a server that KFP_HOST leads to."""
    monkeypatch.setattr("polarmask_pipelines.package.compile_package", lambda _: package)
    monkeypatch.setattr(kfp_client, "_SECONDS_BETWEEN_LOOKS", 0.01)
    with KfpServer() as server:
        monkeypatch.setenv("KFP_HOST", server.url)
        yield server
