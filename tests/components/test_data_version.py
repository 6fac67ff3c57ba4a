import shutil
import subprocess
import sys

import pytest

from polarmask_components.errors import (
    MissingObjectsError,
    NoDataError,
    NotARepositoryError,
    UnknownRevisionError,
)
from polarmask_components.provenance import code_version as code
from polarmask_components.provenance.data_version import (
    fetch,
    has_uncommitted_pointer,
    hash_of_folder,
    resolve,
)


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
    assert not has_uncommitted_pointer(str(copy))
    assert not has_uncommitted_pointer(copy.as_uri())
    (copy / "README.md").write_text("not data")
    assert not has_uncommitted_pointer(str(copy))
    (copy / "data.dvc").write_text((copy / "data.dvc").read_text() + "desc: new\n")
    assert has_uncommitted_pointer(str(copy / "data"))


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
