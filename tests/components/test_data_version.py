import hashlib
import json
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import boto3
import pytest

from certificates import certificate
from polarmask_components.errors import (
    MissingObjectsError,
    NoDataError,
    NotARepositoryError,
    UnknownRevisionError,
)
from polarmask_components.provenance import code_version as code
from polarmask_components.provenance import data_version
from polarmask_components.provenance.data_version import (
    check_reachable,
    fetch,
    hash_of_folder,
    resolve,
    uncommitted_data,
)
from scripted_s3 import ScriptedS3


@pytest.fixture
def copy(data_repository, tmp_path):
    """A checkout of one's own, to damage."""
    return shutil.copytree(data_repository, tmp_path / "copy", symlinks=True)


def git(folder, *arguments):
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_revision_means_the_commit_that_changed_the_data(data_repository):
    version = resolve(str(data_repository), "v1")
    assert version.commit == git(data_repository, "rev-parse", "v1^{commit}")
    assert resolve(str(data_repository), "readme") == version
    assert resolve(str(data_repository), "main") != version


def test_a_folder_inside_the_checkout_will_do(data_repository):
    assert resolve(str(data_repository / "data"), "v1") == resolve(str(data_repository), "v1")


def test_url_means_the_same_as_the_checkout(data_repository):
    url = data_repository.as_uri()
    for revision in ("v1", "main", git(data_repository, "rev-parse", "readme^{commit}")):
        assert resolve(url, revision) == resolve(str(data_repository), revision)


def test_branch_of_a_url_is_found_without_its_remote_name(copy):
    git(copy, "branch", "old", "v1")
    assert resolve(copy.as_uri(), "old") == resolve(str(copy), "v1")


def test_fetch_brings_each_version_its_own_files(data_repository, tmp_path):
    newest = resolve(str(data_repository), "main")
    for place in (str(data_repository), data_repository.as_uri()):
        to = tmp_path / str(len(place)) / "data"
        fetch(place, newest, to)
        assert files_of(to) == files_of(data_repository / "data")
    fetch(str(data_repository), resolve(str(data_repository), "v1"), tmp_path / "v1")
    assert files_of(tmp_path / "v1") != files_of(data_repository / "data")


def test_our_hash_of_a_folder_is_the_one_of_dvc(data_repository):
    assert hash_of_folder(data_repository / "data") == resolve(str(data_repository), "v2").hash


def test_pointer_that_was_changed_and_not_committed_is_noticed(copy):
    assert not uncommitted_data(str(copy))
    assert not uncommitted_data(copy.as_uri())
    (copy / "README.md").write_text("not data")
    assert not uncommitted_data(str(copy))
    (copy / "data.dvc").write_text((copy / "data.dvc").read_text() + "desc: new\n")
    assert uncommitted_data(str(copy / "data")) == "data.dvc has uncommitted changes"


def test_files_that_were_changed_and_not_added_are_noticed(copy):
    (copy / "data" / "annotations" / "instances_val.json").write_text("{}")
    assert "changed without `dvc add data`" in uncommitted_data(str(copy))
    shutil.rmtree(copy / "data")  # not fetched is not changed
    assert not uncommitted_data(str(copy))


@pytest.mark.parametrize("place", ["no/such/folder", "file:///no/such/repository"])
def test_place_that_is_no_repository_is_named(place):
    with pytest.raises(NotARepositoryError, match=place):
        resolve(place, "HEAD")


def test_folder_outside_git_is_named(tmp_path):
    with pytest.raises(NotARepositoryError, match="in no git checkout"):
        resolve(str(tmp_path), "HEAD")


def test_unknown_revision_is_named(data_repository):
    with pytest.raises(UnknownRevisionError, match="'v7'"):
        resolve(str(data_repository), "v7")


def test_revision_without_data_says_how_to_add_it(data_repository):
    with pytest.raises(NoDataError, match="dvc add data"):
        resolve(str(data_repository), "empty")


@pytest.mark.parametrize(
    "pointer",
    ["", "outs: 3", "outs:\n- path: other\n  md5: a.dir", "outs:\n- path: data\n  md5: a"],
)
def test_unusable_pointer_is_refused(copy, pointer):
    (copy / "data.dvc").write_text(pointer)
    git(copy, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-a", "-m", "x")
    with pytest.raises(NoDataError, match=r"data\.dvc"):
        resolve(str(copy), "HEAD")


def test_a_pointer_in_another_encoding_is_read(copy):
    before = resolve(str(copy), "HEAD")
    pointer = copy / "data.dvc"
    pointer.write_bytes("# Stra\xdfen\n".encode("latin-1") + pointer.read_bytes())
    git(copy, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-a", "-m", "x")
    assert resolve(str(copy), "HEAD").hash == before.hash


def test_files_missing_in_cache_and_remote_leave_nothing_behind(copy, tmp_path):
    shutil.rmtree(copy / ".dvc" / "cache")
    shutil.rmtree(copy / ".dvc" / "bundled")
    version = resolve(str(copy), "HEAD")
    with pytest.raises(MissingObjectsError, match="dvc push"):
        fetch(str(copy), version, tmp_path / "out" / "data")
    assert not list((tmp_path / "out").iterdir())


def test_unreachable_remote_is_named(copy, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    shutil.rmtree(copy / ".dvc" / "cache")
    config = copy / ".dvc" / "config"
    config.write_text(config.read_text().replace("url = bundled", "url = s3://bucket/dvc"))
    with pytest.raises(MissingObjectsError, match="check the remote"):
        fetch(str(copy), resolve(str(copy), "HEAD"), tmp_path / "data")


def test_data_comes_from_s3_too(copy, tmp_path, s3_environment):
    config = copy / ".dvc" / "config"
    config.write_text(config.read_text().replace("url = bundled", "url = s3://polarmask/dvc"))
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "push", "--quiet"], cwd=copy, check=True)
    shutil.rmtree(copy / ".dvc" / "cache")
    fetch(str(copy), resolve(str(copy), "HEAD"), tmp_path / "data")
    assert files_of(tmp_path / "data") == files_of(copy / "data")


@pytest.mark.parametrize("place", ["bundled", "cache"])
def test_damaged_file_is_refused(copy, tmp_path, place):
    for other in {"bundled", "cache"} - {place}:
        shutil.rmtree(copy / ".dvc" / other)
    version = resolve(str(copy), "HEAD")
    objects = copy / ".dvc" / place / "files" / "md5"
    png = next((copy / "data" / "images").iterdir()).read_bytes()
    victim = next(p for p in objects.rglob("*") if p.is_file() and p.read_bytes() == png)
    victim.chmod(0o644)
    victim.write_bytes(b"not what was added")
    with pytest.raises(MissingObjectsError):
        fetch(str(copy), version, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def move_remote(checkout, url):
    """Commit another address of the DVC remote."""
    config = checkout / ".dvc" / "config"
    config.write_text(config.read_text().replace("url = bundled", f"url = {url}"))
    commit_all(checkout)


def test_files_come_from_where_the_remote_is_now(copy, tmp_path):
    (copy / ".dvc" / "bundled").rename(tmp_path / "moved")
    shutil.rmtree(copy / ".dvc" / "cache")
    move_remote(copy, tmp_path / "moved")
    (copy / "README.md").write_text("a commit that changes nothing")
    commit_all(copy)
    for place in (str(copy), copy.as_uri()):
        version = resolve(place, "main")
        assert version.commit == git(copy, "rev-parse", "main~1")
        fetch(place, version, tmp_path / str(len(place)))
        assert files_of(tmp_path / str(len(place))) == files_of(copy / "data")


def test_an_output_may_have_a_remote_of_its_own(copy, tmp_path):
    (copy / ".dvc" / "bundled").rename(tmp_path / "moved")
    shutil.rmtree(copy / ".dvc" / "cache")
    with (copy / ".dvc" / "config").open("a") as config:
        config.write(f"['remote \"other\"']\n    url = {tmp_path / 'moved'}\n")
    with (copy / "data.dvc").open("a") as pointer:
        pointer.write("  remote: other\n")
    commit_all(copy)
    check_reachable(copy.as_uri(), "main")
    fetch(copy.as_uri(), resolve(copy.as_uri(), "main"), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(copy / "data")


def test_data_may_be_imported_from_another_repository(copy, tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    git(ours, "init", "--quiet", "--initial-branch=main")
    for command in (["init", "--quiet"], ["import", "--quiet", str(copy), "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=ours, check=True)
    commit_all(ours)
    check_reachable(ours.as_uri(), "main")
    fetch(ours.as_uri(), resolve(ours.as_uri(), "main"), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(copy / "data")


@pytest.fixture
def dvc_2(copy):
    """A checkout as DVC 2 leaves it, with a text file of another system's line ends."""
    shutil.rmtree(copy / ".dvc" / "cache")
    shutil.rmtree(copy / ".dvc" / "bundled")
    names = {"a.csv": b"x,y\r\n1,2\r\n", "b.bin": b"\0\r\n\0"}
    hashed = {name: md5_of(data.replace(b"\r\n", b"\n")) for name, data in names.items()}
    hashed["b.bin"] = md5_of(names["b.bin"])
    entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(hashed.items())]
    listing = json.dumps(entries, sort_keys=True).encode()
    folder = md5_of(listing) + ".dir"
    for md5, data in [(folder, listing), *((hashed[name], names[name]) for name in names)]:
        stored = copy / ".dvc" / "bundled" / md5[:2] / md5[2:]
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(data)
    (copy / "data.dvc").write_text(f"outs:\n- md5: {folder}\n  nfiles: 2\n  path: data\n")
    commit_all(copy)
    return copy, names


def md5_of(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_data_of_dvc_2_is_verified_as_dvc_2_hashed_it(dvc_2, tmp_path):
    checkout, names = dvc_2
    version = resolve(str(checkout), "main")
    check_reachable(str(checkout), "main")
    fetch(str(checkout), version, tmp_path / "out")
    assert files_of(tmp_path / "out") == names
    (victim,) = (
        path for path in (checkout / ".dvc" / "bundled").rglob("*")
        if path.is_file() and path.read_bytes() == names["b.bin"]
    )  # fmt: skip
    victim.write_bytes(b"\0\n\0")
    with pytest.raises(MissingObjectsError, match="is damaged"):
        fetch(str(checkout), version, tmp_path / "again")


@pytest.fixture
def s3_remote(copy, monkeypatch, tmp_path):
    """A checkout whose data is to come from a bucket, with no configuration of the user."""
    shutil.rmtree(copy / ".dvc" / "cache")
    move_remote(copy, "s3://polarmask/dvc")
    (tmp_path / "aws").touch()
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "aws"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    return copy


@contextmanager
def no_key(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with ScriptedS3().running() as address:
        yield address


@contextmanager
def wrong_key(monkeypatch, tmp_path):
    server = ScriptedS3()
    server.refusal = (403, "InvalidAccessKeyId")
    with server.running() as address:
        yield address


def test_a_file_that_may_not_be_opened_is_no_matter_of_credentials(
    data_repository, tmp_path, monkeypatch
):
    version = resolve(str(data_repository), "main")

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied", "/cache/files/ab")

    monkeypatch.setattr("dvc.api.DVCFileSystem", refuse)
    with pytest.raises(MissingObjectsError, match="may not open /cache/files/ab; correct the"):
        fetch(str(data_repository), version, tmp_path / "out")


@contextmanager
def no_bucket(monkeypatch, tmp_path):
    server = ScriptedS3()
    server.refusal = (404, "NoSuchBucket")
    with server.running() as address:
        yield address


@contextmanager
def untrusted(monkeypatch, tmp_path):
    ca = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", signed_by=ca)
    with ScriptedS3(tls=(tmp_path / "server.crt", tmp_path / "server.key")).running() as address:
        yield address


@contextmanager
def dead(monkeypatch, tmp_path):
    yield "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("fault", "diagnosis"),
    [
        (wrong_key, "refuses these credentials.*403"),
        (no_key, "no credentials for the DVC remote"),
        (untrusted, "certificate of the DVC remote is not trusted.*self.signed|local issuer"),
        (dead, "can't be reached; check the remote's address.*127.0.0.1:9"),
        (no_bucket, "bucket of the DVC remote does not exist"),
    ],
)
def test_each_fault_of_a_remote_has_its_own_diagnosis(
    s3_remote, tmp_path, monkeypatch, fault, diagnosis
):
    version = resolve(str(s3_remote), "main")
    with fault(monkeypatch, tmp_path) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(MissingObjectsError, match=diagnosis) as raised:
            fetch(str(s3_remote), version, tmp_path / "out")
        assert "dvc push" not in str(raised.value)
        with pytest.raises(MissingObjectsError, match=diagnosis):
            check_reachable(str(s3_remote), "main")


def test_a_hook_of_git_leads_to_no_other_repository(copy, tmp_path, monkeypatch):
    expected = resolve(copy.as_uri(), "v1"), git(copy, "rev-parse", "HEAD")
    users = tmp_path / "users"
    users.mkdir()
    git(users, "init", "--quiet")
    (users / "file").touch()
    commit_all(users)
    head = (users / ".git" / "HEAD").read_text()
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(users / ".git"))
        hook.setenv("GIT_WORK_TREE", str(users))
        hook.setenv("GIT_INDEX_FILE", str(users / ".git" / "index"))
        hook.setenv("GIT_PREFIX", "")
        assert resolve(str(copy), "v1") == expected[0]
        fetch(copy.as_uri(), expected[0], tmp_path / "out")
    assert (users / ".git" / "HEAD").read_text() == head
    assert git(copy, "rev-parse", "HEAD") == expected[1]


@pytest.fixture
def silent_server():
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_git_server_that_never_answers_is_named(silent_server, monkeypatch):
    monkeypatch.setattr(data_version, "SECONDS_TO_ANSWER", 0.5)
    with pytest.raises(NotARepositoryError, match=r"did not end within .*git://127.0.0.1"):
        resolve(f"git://127.0.0.1:{silent_server}/x", "main")


def test_a_web_server_that_never_answers_is_given_up_early(silent_server, monkeypatch):
    monkeypatch.setenv("GIT_HTTP_LOW_SPEED_TIME", "1")
    with pytest.raises(NotARepositoryError, match=r"can't be cloned: .*too slow"):
        resolve(f"http://127.0.0.1:{silent_server}/x", "main")


def test_a_shallow_clone_is_refused_with_the_fix(copy, tmp_path):
    git(tmp_path, "clone", "--quiet", "--depth=1", copy.as_uri(), "shallow")
    with pytest.raises(UnknownRevisionError, match="fetch --unshallow"):
        resolve(str(tmp_path / "shallow"), "HEAD")
    git(tmp_path / "shallow", "fetch", "--quiet", "--unshallow")
    assert resolve(str(tmp_path / "shallow"), "HEAD") == resolve(str(copy), "HEAD")


def test_data_in_a_subdirectory_is_named(copy):
    (copy / "sub").mkdir()
    git(copy, "mv", "data.dvc", "sub/data.dvc")
    commit_all(copy)
    with pytest.raises(NoDataError, match=r"has sub/data\.dvc, and data\.dvc has to be at the top"):
        resolve(str(copy), "HEAD")


def test_a_version_aware_remote_will_do(copy, tmp_path, s3_environment):
    """Such a remote keeps files under their names, and data.dvc the versions of each."""
    name = tmp_path.name
    client = boto3.client("s3")
    client.create_bucket(Bucket="versions")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    before = resolve(str(copy), "HEAD")
    move_remote(copy, f"s3://versions/{name}\n    version_aware = true")
    subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], cwd=copy, check=True)
    commit_all(copy)
    shutil.rmtree(copy / ".dvc" / "cache")
    version = resolve(str(copy), "HEAD")
    assert version.hash == before.hash
    check_reachable(str(copy), "HEAD")
    fetch(str(copy), version, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(copy / "data")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `ours` in a git checkout."""
    root = tmp_path / "checkout" / "ours"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet", "checkout")
    monkeypatch.syspath_prepend(str(root.parent))
    monkeypatch.setattr(code, "PACKAGES", ("ours", "not_installed"))
    return root


def commit_all(folder):
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "x")


def test_code_version_follows_every_edit_and_nothing_else(package):
    before = code.code_version()
    (package.parent / "README.md").write_text("not code")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_text("made by running")
    assert code.code_version() == before
    (package / "settings.yaml").write_text("x: 1")
    assert code.code_version() != before


def test_code_commit_marks_uncommitted_changes(package):
    assert code.code_commit() == ""  # not tracked yet
    commit_all(package)
    commit = git(package, "rev-parse", "HEAD")
    assert code.code_commit() == commit
    (package / "__init__.py").write_text("x = 1\n")
    assert code.code_commit() == f"{commit}-dirty"
