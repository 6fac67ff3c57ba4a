"""Real S3 servers: ours, for all tests that store objects, and Kubeflow's own."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

_USERS = """{"identities": [{"name": "tests", "actions": ["Admin", "Read", "Write", "List"],
"credentials": [{"accessKey": "%s", "secretKey": "%s"}]}]}"""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """Start an S3 server with the bucket of the pipeline; return what leads boto3 to it."""
    with _seaweedfs(tmp_path_factory.mktemp("s3"), "polarmask", "key", "secret") as environment:
        yield environment


@pytest.fixture(scope="session")
def kubeflow_store(tmp_path_factory):
    """Start another one, as Kubeflow has it: its own address, bucket and keys."""
    folder = tmp_path_factory.mktemp("kubeflow")
    with _seaweedfs(folder, "mlpipeline", "minio", "minio123") as environment:
        yield environment


@contextmanager
def _seaweedfs(folder, bucket, key, secret):
    (folder / "users.json").write_text(_USERS % (key, secret))
    names = ("master", "volume", "filer", "s3")
    ports = _free_ports(2 * len(names))
    flags = [
        flag
        for name, http, grpc in zip(names, ports[::2], ports[1::2], strict=True)
        for flag in (f"-{name}.port={http}", f"-{name}.port.grpc={grpc}")
    ]
    weed = Path(sys.executable).with_name("weed")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *flags),
                *("-s3", f"-s3.config={folder / 'users.json'}", "-s3.port.iceberg=0"),
                *("-s3.port.lance=0", f"-filer.localSocket={folder / 'filer.sock'}"),
                *(f"-s3.localSocket={folder / 's3.sock'}", "-master.telemetry=false"),
                *("-volume.max=100", "-master.volumeSizeLimitMB=64"),
            ],
            stdout=log,
            stderr=log,
        )
    environment = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[-2]}",
    }
    try:
        _make_bucket(environment, bucket, process, folder / "log")
        yield environment
    finally:
        process.kill()  # its data goes with the folder; asked kindly it takes ten seconds
        process.wait()
        for port in ports:  # it leaves these behind, whatever its settings
            for kind in ("master", "volume", "filer", "s3"):
                Path(f"/tmp/seaweedfs-{kind}-grpc-{port}.sock").unlink(missing_ok=True)


def client_of(environment):
    """Return a client of a server, whatever this process's own environment says."""
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


def _free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _make_bucket(environment, bucket, process, log):
    client = client_of(environment)
    deadline = time.monotonic() + 30
    while True:
        try:
            client.create_bucket(Bucket=bucket)
            return
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(errors="replace")[-2000:]) from None
            time.sleep(0.1)


@pytest.fixture
def s3_environment(s3_server, monkeypatch, tmp_path):
    """Lead this process and its children to the S3 server, and to no configuration of the user."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return s3_server
