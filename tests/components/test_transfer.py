"""Folders in object storage, and what a training job keeps there, on a real S3 server."""

import logging
import socket
import threading
from contextlib import suppress

import boto3
import pytest

from polarmask_components.errors import StorageError
from polarmask_components.storage.manifest import (
    FileFacts,
    from_plain,
    manifest_of,
)
from polarmask_components.storage.parallel import in_parallel
from polarmask_components.storage.s3_objects import S3Objects
from polarmask_components.storage.transfer import download_files, upload_files
from polarmask_components.training.job_storage import JobStorage

BUCKET = "polarmask"


@pytest.fixture
def place(s3_environment, request):
    """A place of its own for each test."""
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "a b.txt").write_text("with a space")
    (folder / "empty").touch()
    (folder / "big").write_bytes(bytes(range(256)) * 20_000)
    return folder


def upload(place, folder):
    remote = S3Objects.from_uri(place)
    names = manifest_of(folder)
    upload_files(remote, {name: folder / name for name in names}, what="files")
    return remote, names


def objects():
    return boto3.client("s3")


def key(place, name):
    return {"Bucket": BUCKET, "Key": f"{place.removeprefix(f's3://{BUCKET}/')}/{name}"}


def test_a_folder_comes_back_as_it_went(place, files, tmp_path):
    remote, manifest = upload(place, files)
    assert sorted(remote.names()) == ["big", "deep/er/a b.txt", "empty"]
    download_files(remote, manifest, tmp_path / "back", what="files")
    assert manifest_of(tmp_path / "back") == manifest


def test_what_is_there_whole_is_not_fetched_again(place, files, tmp_path):
    remote, manifest = upload(place, files)
    back = tmp_path / "back"
    download_files(remote, manifest, back, what="files")
    (back / "empty").write_text("no longer so")
    objects().delete_object(**key(place, "big"))
    download_files(remote, manifest, back, what="files")
    assert (back / "big").stat().st_size == manifest["big"].size
    assert (back / "empty").read_bytes() == b""


def test_a_changed_object_is_refused_by_name_and_leaves_nothing(place, files, tmp_path):
    remote, manifest = upload(place, files)
    objects().put_object(**key(place, "big"), Body=b"something else")
    with pytest.raises(StorageError, match=r"big is not what was stored: 14 bytes"):
        download_files(remote, manifest, tmp_path / "back", what="files")
    assert not list((tmp_path / "back").glob("*big*"))


def test_a_missing_object_is_named(place, files, tmp_path):
    remote, manifest = upload(place, files)
    objects().delete_object(**key(place, "empty"))
    with pytest.raises(StorageError, match=r"/empty does not exist; delete it"):
        download_files(remote, manifest, tmp_path / "back", what="files")


@pytest.mark.parametrize(
    ("uri", "expected_text"),
    [
        ("runs/here", "^'runs/here' is no place in object storage; write"),
        ("s3://", "^'s3://' is no place"),
        ("", "^'' is no place"),
        ("gs://bucket/x", "'gs://bucket/x' .* gs:// speaks another protocol"),
        ("minio://mlpipeline/x", "'minio://mlpipeline/x' .*Secret mlpipeline-minio-artifact"),
        ("s3://bucket/x?endpoint=s3.example&region=a", "belongs into the Secret with the keys"),
    ],
)
def test_another_place_than_object_storage_is_refused(uri, expected_text):
    with pytest.raises(StorageError, match=expected_text) as caught:
        S3Objects.from_uri(uri)
    assert "write s3://bucket/prefix" in str(caught.value)


def test_a_list_that_points_out_of_its_folder_is_refused():
    facts = {"sha256": "0" * 64, "size": 1}
    for name in ("../up", "/etc/passwd", "a/../../b"):
        with pytest.raises(StorageError, match="outside"):
            from_plain({name: facts})


def test_an_empty_folder_is_no_input(tmp_path):
    with pytest.raises(StorageError, match="holds no files"):
        manifest_of(tmp_path)


class CuttingProxy:
    """Forwards TCP; cuts the first connections after some bytes of the answer."""

    def __init__(self, port, cuts, after):
        self._port, self.cuts, self._after = port, cuts, after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [client, server]
            threading.Thread(target=self._pipe, args=(client, server, None), daemon=True).start()
            limit = self._after if self.cuts else None
            threading.Thread(target=self._pipe, args=(server, client, limit), daemon=True).start()

    def _pipe(self, source, to, limit):
        done = 0
        try:
            while block := source.recv(65536):
                to.sendall(block)
                done += len(block)
                if limit and done > limit:
                    self.cuts -= 1
                    break
        except OSError:
            pass
        for each in (source, to):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_a_lost_connection_costs_what_was_not_received_yet(
    place, files, tmp_path, s3_environment, monkeypatch
):
    upload(place, files)
    proxy = CuttingProxy(int(s3_environment["AWS_ENDPOINT_URL"].rsplit(":")[-1]), 3, 1_500_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    try:
        remote = S3Objects.from_uri(place)
        facts = {"big": manifest_of(files)["big"]}
        download_files(remote, facts, tmp_path / "back", what="files")
        assert proxy.cuts == 0
        assert manifest_of(tmp_path / "back") == facts
    finally:
        proxy.close()


def test_a_storage_that_is_not_there_is_named_after_the_deadline(monkeypatch, s3_environment):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://polarmask/x: .*check that it exists"):
        S3Objects.from_uri("s3://polarmask/x", deadline_seconds=1).read("a")


def test_the_first_error_ends_all_and_does_not_wait_for_the_others():
    waits = threading.Event()

    def act(number):
        if number == 3:
            raise StorageError("third")
        waits.wait(60)

    with pytest.raises(StorageError, match="third"):
        in_parallel(act, range(100))
    waits.set()


def test_inputs_are_stored_once_for_all_jobs(place, files, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first, second = JobStorage(place, "first"), JobStorage(place, "second")
    first.store_inputs({"data": files, "labels": files})
    stored = S3Objects.from_uri(f"{place}/inputs").names()
    assert sorted(stored) == sorted({facts.sha256 for facts in manifest_of(files).values()})
    caplog.clear()
    second.store_inputs({"data": files})
    assert "0 of 0 files" in caplog.text
    second.fetch_inputs(tmp_path / "back")
    assert manifest_of(tmp_path / "back" / "data") == manifest_of(files)


def write_run(folder, step):
    (folder / "best").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint.pt").write_text(f"state of step {step}")
    (folder / "best" / "model.json").write_text("the best weights stay the same")
    (folder / "metrics.jsonl").write_text(f"up to {step}")


@pytest.fixture
def storage(place):
    return JobStorage(place, "job")


def test_the_last_two_snapshots_stay_and_share_what_is_equal(storage, tmp_path, place):
    for step in (1, 2, 3):
        write_run(tmp_path / "run", step)
        storage.save_snapshot(tmp_path / "run", step)
    assert [snapshot.step for snapshot in storage.snapshots()] == [3, 2]
    stored = S3Objects.from_uri(f"{place}/job").names()
    assert len(stored) == 1 + 2 + 2 + 1  # latest.json; two checkpoints, two logs, best once
    write_run(tmp_path / "old", 2)
    storage.save_snapshot(tmp_path / "old", 2)
    assert [snapshot.step for snapshot in storage.snapshots()] == [3, 2]


def test_the_newest_whole_snapshot_comes_back_if_it_is_newer(storage, tmp_path, place):
    for step in (4, 5):
        write_run(tmp_path / "run", step)
        storage.save_snapshot(tmp_path / "run", step)
    assert storage.restore_snapshot(tmp_path / "a", newer_than=-1) == 5
    assert (tmp_path / "a" / "checkpoint.pt").read_text() == "state of step 5"
    assert storage.restore_snapshot(tmp_path / "b", newer_than=5) is None
    assert not (tmp_path / "b").exists()

    newest = storage.snapshots()[0].files["checkpoint.pt"].sha256
    objects().put_object(**key(place, f"job/objects/{newest}"), Body=b"bits have flipped")
    assert storage.restore_snapshot(tmp_path / "c", newer_than=-1) == 4
    assert (tmp_path / "c" / "checkpoint.pt").read_text() == "state of step 4"

    older = storage.snapshots()[1].files["checkpoint.pt"].sha256
    objects().delete_object(**key(place, f"job/objects/{older}"))
    with pytest.raises(StorageError, match="not what was stored"):
        storage.restore_snapshot(tmp_path / "d", newer_than=-1)


def test_a_result_outlives_the_snapshots(storage, tmp_path, place):
    run = tmp_path / "run"
    write_run(run, 9)
    storage.store_inputs({"data": run})
    storage.save_snapshot(run, 9)
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").write_text("weights")
    for killed in (".checkpoint.pt.7.tmp", "best/.model.json.7.tmp"):
        (run / killed).write_text("half of a fi")
    assert storage.result() is None
    storage.store_result(run / "model", run, spec="asked")
    result = JobStorage(place, "job").result()
    assert result.spec == "asked"
    storage.forget_snapshots(result)
    storage.fetch_result(result, model=tmp_path / "model", run=tmp_path / "kept")
    assert (tmp_path / "model" / "model.safetensors").read_text() == "weights"
    assert sorted(manifest_of(tmp_path / "kept")) == ["best/model.json", "metrics.jsonl"]
    assert storage.snapshots() == []


def test_what_another_release_or_a_fault_left_is_named(storage, place, tmp_path):
    with pytest.raises(StorageError, match=r"holds no inputs\.json"):
        storage.fetch_inputs(tmp_path)
    objects().put_object(**key(place, "job/latest.json"), Body=b'{"format_version": 0}')
    with pytest.raises(StorageError, match="format version 0"):
        storage.snapshots()
    objects().put_object(**key(place, "job/result.json"), Body=b"{")
    with pytest.raises(StorageError, match=r"result\.json can.t be read"):
        storage.result()


def test_facts_are_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest_of(tmp_path) == {"a": FileFacts(digest, 3)}
