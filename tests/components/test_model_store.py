"""Archives on a real S3 server: stored once under their content's name."""

from uuid import uuid4

import boto3
import pytest

from polarmask.system.files import sha256_of_file
from polarmask_components.errors import RegistryError, UnusableModelError
from polarmask_components.registry.model_store import store_archive
from polarmask_components.registry.registry import open_registry
from polarmask_serving.archive.read import Archive


@pytest.fixture
def registry(s3_environment):
    return open_registry(f"s3://polarmask/{uuid4().hex}/registry")


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "model.mar"
    path.write_bytes(b"an archive")
    return Archive(path=path, name="polarmask", version="1", sha256=sha256_of_file(path))


def stored(uri):
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return boto3.resource("s3").Object(bucket, key)


def test_an_archive_lies_beside_the_registry_under_its_hash(registry, archive):
    uri = store_archive(archive, registry)
    assert uri == f"{registry.where}/archives/{archive.sha256}.mar"
    assert stored(uri).get()["Body"].read() == b"an archive"


def test_an_archive_is_written_once(registry, archive):
    first = stored(store_archive(archive, registry)).last_modified
    stored_bytes = stored(store_archive(archive, registry)).get()["Body"].read()
    assert stored(store_archive(archive, registry)).last_modified == first
    archive.path.write_bytes(b"other byte")  # of the same length
    store_archive(archive, registry)
    assert stored(store_archive(archive, registry)).get()["Body"].read() == stored_bytes


def test_something_else_in_its_place_is_noticed(registry, archive):
    stored(store_archive(archive, registry)).put(Body=b"half")
    with pytest.raises(UnusableModelError, match="has 4 bytes, not 10"):
        store_archive(archive, registry)


def test_a_registry_that_pods_cannot_read_is_refused(archive, tmp_path):
    with pytest.raises(RegistryError, match="give deploy_registry=s3://"):
        store_archive(archive, open_registry(str(tmp_path)))
