import os

import pytest

from polarmask.system.files import atomic_path, write_text


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
