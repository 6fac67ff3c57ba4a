"""The S3 server of the kind overlay, run here with the arguments of its manifest."""

import base64
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from manifest_rules import name_of

WEED = Path(sys.executable).with_name("weed")
PORTS = ("master", "volume", "filer", "s3", "admin")


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def find(objects, prefix):
    return next(thing for thing in objects if name_of(thing).startswith(prefix))


def keys_in(objects, secret):
    """Return what a Secret of the overlay puts into the environment."""
    data = find(objects, f"Secret/{secret}")["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


def client_of(keys, port):
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=keys["AWS_DEFAULT_REGION"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        config=Config(
            request_checksum_calculation="when_required", retries={"total_max_attempts": 1}
        ),
    )


@pytest.fixture
def storage(kind, tmp_path):
    """Start the server; return the clients of the pipeline and of the server's pods."""
    (container,) = find(kind, "Deployment/s3")["spec"]["template"]["spec"]["containers"]
    users = keys_in(kind, "s3-users")["users.json"]
    (tmp_path / "users.json").write_text(users)
    (tmp_path / "data").mkdir()
    places = {"/data": str(tmp_path / "data"), "/etc/s3": str(tmp_path)}
    arguments = container["args"]
    for inside, outside in places.items():
        arguments = [each.replace(f"={inside}", f"={outside}") for each in arguments]
    ports = free_ports(2 * len(PORTS))
    # The last of two equal flags counts: only where it listens is another place than in the pod.
    for name, port, grpc in zip(PORTS, ports[::2], ports[1::2], strict=True):
        arguments += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    for name in ("filer", "s3"):
        arguments.append(f"-{name}.localSocket={tmp_path / name}.sock")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [WEED, *arguments, "-ip.bind=127.0.0.1"], stdout=log, stderr=log, cwd=tmp_path
        )
    port = ports[2 * PORTS.index("s3")]
    clients = [
        client_of(keys_in(kind, name), port) for name in ("polarmask-s3", "polarmask-model-store")
    ]
    try:
        wait_for_bucket(clients[0], process, tmp_path / "log")
        yield clients
    finally:
        process.kill()
        process.wait()
        for each in ports:
            for name in PORTS:
                Path(f"/tmp/seaweedfs-{name}-grpc-{each}.sock").unlink(missing_ok=True)


def wait_for_bucket(client, process, log):
    deadline = time.monotonic() + 60
    while True:
        try:
            client.head_bucket(Bucket="polarmask")
            return
        except (BotoCoreError, ClientError):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.2)


def refuses(call, **arguments):
    with pytest.raises(ClientError) as refusal:
        call(Bucket="polarmask", **arguments)
    return refusal.value.response["Error"]["Code"]


def test_the_pipeline_writes_conditionally_and_the_server_only_reads(storage):
    pipeline, serving = storage
    pipeline.put_object(Bucket="polarmask", Key="a", Body=b"1", IfNoneMatch="*")
    lost = refuses(pipeline.put_object, Key="a", Body=b"2", IfNoneMatch="*")
    assert lost == "PreconditionFailed"
    assert pipeline.list_objects_v2(Bucket="polarmask")["KeyCount"] == 1
    assert serving.get_object(Bucket="polarmask", Key="a")["Body"].read() == b"1"
    assert refuses(serving.put_object, Key="a", Body=b"2") == "AccessDenied"
    assert refuses(serving.delete_object, Key="a") == "AccessDenied"
    assert refuses(serving.list_objects_v2) == "AccessDenied"
    pipeline.delete_object(Bucket="polarmask", Key="a")
    assert refuses(serving.get_object, Key="a") == "NoSuchKey"


def test_keys_and_address_of_the_secrets_lead_to_the_service(kind):
    service = find(kind, "Service/s3")
    (port,) = service["spec"]["ports"]
    namespace = service["metadata"]["namespace"]
    for name in ("polarmask-s3", "polarmask-model-store"):
        address = keys_in(kind, name)["AWS_ENDPOINT_URL"]
        assert address == f"http://s3.{namespace}.svc:{port['port']}"
