"""A roll-out to pods whose proxy speaks TLS and asks who comes for a certificate."""

import pytest

from certificates import certificate
from factories import make_tiny_coco
from polarmask_components.deploy.ask_server import Tls, ask
from polarmask_components.deploy.cluster_deployment import ClusterDeployment
from polarmask_serving.errors import ServerError
from serving_cluster import NAMESPACE, ServingCluster, make_model

NAME = f"polarmask.{NAMESPACE}.svc"


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    """The cluster; `certificates` has the PEM texts by file name."""
    folder = tmp_path_factory.mktemp("tls")
    authority = certificate(folder, "ca")
    certificate(folder, "unknown")
    certificate(folder, "tls", signed_by=authority, of=NAME)
    certificate(folder, "client", signed_by=authority)
    pem = {path.name: path.read_text() for path in folder.iterdir()}
    data = make_tiny_coco(folder / "data", images=1, val_images=1)
    image = (data / "images" / "val_000.png").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        patch.setenv("POLARMASK_CA", pem["ca.crt"])
        patch.setenv("POLARMASK_CLIENT_CERT", pem["client.crt"])
        patch.setenv("POLARMASK_CLIENT_KEY", pem["client.key"])
        secret = {name: pem[name] for name in ("tls.crt", "tls.key", "ca.crt")}
        with ServingCluster(s3_server, image, tls=secret) as cluster:
            cluster.lead_here(patch)
            cluster.certificates = pem
            yield cluster


# CPython leaves a TLS socket open whose peer goes between connecting and the handshake, as pods
# that end do: ssl.SSLSocket._create raises without closing.
@pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_a_model_is_asked_over_tls_and_unknown_clients_get_no_answer(cluster, tmp_path):
    deployed = cluster.deploy(make_model(tmp_path / "model", seed=1))
    assert deployed.url.startswith("https://")
    assert cluster.registry.champion_version() == deployed.version
    pem = cluster.certificates
    shown = {"certificate": pem["client.crt"], "key": pem["client.key"]}
    right = Tls(name=NAME, ca=pem["ca.crt"], **shown)
    assert ask(deployed.url, cluster.image, tls=right)["model"]["version"] == deployed.version
    for wrong, expected_text in (
        (Tls(name=NAME, ca=pem["unknown.crt"], **shown), "CERTIFICATE_VERIFY_FAILED"),
        (
            Tls(name="other.svc", ca=pem["ca.crt"], **shown),
            "CERTIFICATE_VERIFY_FAILED|doesn't match",
        ),
        (Tls(name=NAME, ca="no certificate", **shown), "SSLError"),
    ):
        with pytest.raises(ServerError, match=expected_text):
            ask(deployed.url, cluster.image, tls=wrong)


def test_a_key_without_its_certificate_is_refused(monkeypatch):
    monkeypatch.delenv("POLARMASK_CLIENT_CERT", raising=False)
    monkeypatch.setenv("POLARMASK_CLIENT_KEY", "key")
    with pytest.raises(ServerError, match="go together"):
        ClusterDeployment.from_uri(None, "kubernetes://a/b")
