"""What S3 servers other than the one of the tests do, and proxies in front of them."""

import threading

import boto3
import pytest

from certificates import certificate
from polarmask_components.checks.bucket_check import problems_of_bucket
from polarmask_components.errors import StorageError
from polarmask_components.registry.registry import open_registry
from polarmask_components.storage.client import s3_client
from polarmask_components.storage.manifest import manifest_of
from polarmask_components.storage.objects import open_objects
from polarmask_components.storage.s3_objects import S3Objects
from polarmask_components.storage.transfer import download_files
from scripted_s3 import ScriptedS3

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Credentials, and nothing of the user's configuration."""
    (tmp_path / "aws").touch()
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "aws"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    for name in (
        "AWS_CA_BUNDLE",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
    ):
        monkeypatch.setenv(name, "")  # restored after the test, even if code sets it
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials and region


@pytest.fixture
def server(environment, monkeypatch):
    server = ScriptedS3()
    with server.running() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield server


@pytest.fixture
def big(server, tmp_path):
    """Facts of an object, which is cut twice when it is read."""
    server.objects["/b/x/big"] = CONTENT
    server.cuts, server.cut_after = 2, 100_000
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "big").write_bytes(CONTENT)
    return manifest_of(tmp_path / "facts")


def test_a_server_that_ignores_ranges_sends_the_whole_object_again(server, big, tmp_path):
    server.ignores_range = True
    download_files(S3Objects.from_uri("s3://b/x"), big, tmp_path / "back", what="files")
    assert manifest_of(tmp_path / "back") == big
    assert server.cuts == 0


@pytest.mark.parametrize("begins_at", [0, 50_000])
def test_a_range_that_begins_earlier_is_written_where_it_begins(server, big, tmp_path, begins_at):
    server.begins_at = begins_at
    download_files(S3Objects.from_uri("s3://b/x"), big, tmp_path / "back", what="files")
    assert manifest_of(tmp_path / "back") == big


def test_what_a_killed_process_left_of_a_download_is_removed(server, tmp_path):
    """The other threads of a failed download end in the middle of their files, as in a kill."""
    hold, started = threading.Event(), threading.Event()

    class StorageThatGoesAway:
        where = "s3://b/x"

        def download(self, name, to, **_):
            if name == "second":
                started.wait(60)
                raise StorageError("the storage is away")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(b"half of a fi")
            started.set()
            hold.wait(60)

    (tmp_path / "facts").mkdir()
    for name in ("first", "second"):
        server.objects[f"/b/x/{name}"] = CONTENT
        (tmp_path / "facts" / name).write_bytes(CONTENT)
    files = manifest_of(tmp_path / "facts")
    to = tmp_path / "back"
    try:
        with pytest.raises(StorageError, match="is away"):
            download_files(StorageThatGoesAway(), files, to, what="files")
        assert len(manifest_of(to)) == 1
        download_files(S3Objects.from_uri("s3://b/x"), files, to, what="files")
        assert manifest_of(to) == files
    finally:
        hold.set()


def test_a_conflict_with_another_write_is_tried_again(server):
    objects = open_objects("s3://b/x")
    server.conflicts = 2
    assert objects.write("champion.json", b"1", expected_tag=None)
    assert server.objects["/b/x/champion.json"] == b"1"
    assert len([each for each in server.requests if each[0] == "PUT"]) == 3


def test_weak_tags_swap_and_lose_races_as_strong_ones(server):
    server.weak_tags = True
    objects = open_objects("s3://b/x")
    objects.write("champion.json", b"1", expected_tag=None)
    _, tag = objects.read("champion.json")
    assert objects.write("champion.json", b"2", expected_tag=tag)
    assert not objects.write("champion.json", b"3", expected_tag=tag)
    assert list(problems_of_bucket("s3://b/x")) == []
    open_registry("s3://b/x").check_writable()


def test_tags_that_the_server_does_not_know_again_are_found_before_the_run(server):
    server.changed_tags = True
    (problem,) = problems_of_bucket("s3://b/x")
    assert "refuses IfMatch with an object's own ETag" in problem
    with pytest.raises(StorageError, match="no model could be promoted"):
        open_registry("s3://b/x").check_writable()


@pytest.fixture
def own_ca(environment, tmp_path, monkeypatch):
    """Serve TLS with a certificate of an authority of our own; return its PEM."""
    ca = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", signed_by=ca)
    with ScriptedS3(tls=(tmp_path / "server.crt", tmp_path / "server.key")).running() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield (tmp_path / "ca.crt").read_text()


def test_a_certificate_that_is_not_trusted_is_final_and_named(own_ca):
    with pytest.raises(StorageError, match=r"certificate; POLARMASK_STORAGE_CA takes the PEM"):
        S3Objects.from_uri("s3://b/x", deadline_seconds=900).read("a")


def test_an_authority_of_ones_own_is_trusted(own_ca, monkeypatch):
    monkeypatch.setenv("POLARMASK_STORAGE_CA", own_ca)
    assert open_objects("s3://b/x").write("a", b"1", expected_tag=None)


def test_a_bundle_that_does_not_exist_is_named(environment, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such.crt")
    with pytest.raises(StorageError, match=r"AWS_CA_BUNDLE is '/no/such.crt'"):
        open_objects("s3://b/x")


def test_the_region_may_have_the_name_that_other_programs_use(environment, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert s3_client().meta.region_name == "eu-central-1"


def test_a_name_that_is_no_utf8_is_refused_by_name(environment):
    with pytest.raises(StorageError, match=r"images/caf\\udce9.png is no name for object storage"):
        S3Objects.from_uri("s3://b/x", deadline_seconds=5).put("images/caf\udce9.png", b"1")
