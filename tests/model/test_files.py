import os

import pytest

from polarmask.errors import ConfigError
from polarmask.system.files import (
    atomic_path,
    leaves_folder,
    sha256_of_files,
    tree_sha256,
    write_text,
)
from polarmask.system.formats import JsonFormat


def write_folder(path, content):
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_replaces_an_older_one_whole(tmp_path):
    write_folder(tmp_path / "model", "old")
    (tmp_path / "model" / "leftover").touch()
    write_folder(tmp_path / "model", "new")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["inner"]
    assert (tmp_path / "model" / "inner" / "file").read_text() == "new"


def test_a_failure_leaves_the_older_one_alone(tmp_path):
    write_folder(tmp_path / "model", "old")
    with pytest.raises(TypeError):
        write_folder(tmp_path / "model", None)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "inner" / "file").read_text() == "old"


def test_what_a_killed_process_left_is_cleared(tmp_path):
    for suffix in ("tmp", "old"):
        stale = tmp_path / f".model.{os.getpid()}.{suffix}"
        stale.mkdir()
        (stale / "half").touch()
    write_folder(tmp_path / "model", "old")
    write_folder(tmp_path / "model", "new")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["inner"]


def test_the_older_folder_comes_back_when_the_new_one_cannot_stand(tmp_path, monkeypatch):
    write_folder(tmp_path / "model", "old")
    replace = type(tmp_path).replace

    def refuse_the_new(self, target):
        if self.suffix == ".tmp":
            raise OSError("no space")
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", refuse_the_new)
    with pytest.raises(OSError, match="no space"):
        write_folder(tmp_path / "model", "new")
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "inner" / "file").read_text() == "old"


def test_a_file_replaces_a_file(tmp_path):
    write_text(tmp_path / "deep" / "note", "old")
    write_text(tmp_path / "deep" / "note", "new")
    assert (tmp_path / "deep" / "note").read_text() == "new"
    assert names(tmp_path / "deep") == ["note"]


def test_a_folders_hash_depends_on_names_and_content_and_nothing_else(tmp_path):
    for place in ("first", "second"):
        (tmp_path / place / "inner").mkdir(parents=True)
        (tmp_path / place / "inner" / "a").write_text("one")
        (tmp_path / place / "b").write_text("two")
    files = sha256_of_files(tmp_path / "first")
    assert list(files) == ["b", "inner/a"]
    assert tree_sha256(files) == tree_sha256(sha256_of_files(tmp_path / "second"))
    (tmp_path / "second" / "b").rename(tmp_path / "second" / "c")
    assert tree_sha256(files) != tree_sha256(sha256_of_files(tmp_path / "second"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../b", "a/../b", "", "a\\b", "a\0"])
def test_a_name_that_could_leave_its_folder_is_found(name):
    assert leaves_folder(name)
    assert not leaves_folder("a/b.c")


FORMAT = JsonFormat(2, ConfigError, "make it again")


def test_a_versioned_file_gives_back_what_was_written():
    assert FORMAT.load(FORMAT.dump({"a": [1]}), where="x.json") == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "x.json can't be read .*; make it again"),
        ("[]", "x.json can't be read .*; make it again"),
        ("{}", "x.json has format version None, this code reads 2; make it again"),
        ('{"format_version": 1}', "x.json has format version 1, this code reads 2; make it again"),
    ],
)
def test_a_file_of_another_format_is_refused_by_name(text, reason):
    with pytest.raises(ConfigError, match=reason):
        FORMAT.load(text, where="x.json")
