import gc
import multiprocessing
import os
import pickle
import resource
import tempfile

import numpy as np
import pytest

from polarmask.data.disk_list import DiskListWriter
from polarmask.errors import DataError

ITEMS = [("a", 1), None, {"x": [1.5] * 1000}, "", "last"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def written(items):
    writer = DiskListWriter()
    for item in items:
        writer.add(item)
    return writer.finish()


def test_a_disk_list_is_the_sequence_that_was_put_in(folder):
    items = written(ITEMS)
    assert list(items) == ITEMS
    assert (len(items), items[0], items[-1]) == (5, ITEMS[0], ITEMS[-1])
    assert list(items[1:4:2]) == ITEMS[1:4:2]
    assert list(items[::-1]) == ITEMS[::-1]
    assert list(items.take(np.array([4, 0, 0]))) == [ITEMS[4], ITEMS[0], ITEMS[0]]
    with pytest.raises(IndexError):
        items[5]


def test_the_file_goes_with_the_last_that_needs_it(folder):
    items = written(ITEMS)
    part = items[2:]
    del items
    gc.collect()
    assert list(part) == ITEMS[2:]
    assert len(list(folder.iterdir())) == 1
    del part
    gc.collect()
    assert not list(folder.iterdir())


def test_a_disk_list_that_was_never_finished_leaves_no_file(folder):
    writer = DiskListWriter()
    writer.add("something")
    del writer
    gc.collect()
    assert not list(folder.iterdir())


def test_a_copy_reads_the_file_and_leaves_it_there(folder):
    items = written(ITEMS)
    copy = pickle.loads(pickle.dumps(items[1:]))
    assert list(copy) == ITEMS[1:]
    del copy
    gc.collect()
    assert list(items) == ITEMS


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_other_processes_read_it_and_leave_it_there(folder, method):
    items = written(ITEMS)
    assert items[0] == ITEMS[0]  # its file is open
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(items.__getitem__, range(5)) == ITEMS
    assert list(items) == ITEMS


def test_a_full_disk_is_reported_with_the_way_out(folder):
    writer = DiskListWriter()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DataError, match="set TMPDIR"):
            writer.add(os.urandom(1 << 21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_is_not_there_is_reported(folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "absent"))
    with pytest.raises(DataError, match="set TMPDIR"):
        DiskListWriter()
