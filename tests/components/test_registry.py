import json
import subprocess
import sys
from dataclasses import replace

import pytest

from polarmask.system.files import sha256_of_files
from polarmask_components.errors import (
    ConflictError,
    StorageError,
    UnknownVersionError,
    UnusableModelError,
)
from polarmask_components.registry.registry import Facts, open_registry
from polarmask_components.storage.objects import fetch_file
from polarmask_components.storage.s3_objects import S3Objects
from registries import make_archive, promotions_of

FACTS = Facts(
    data_commit="c0ffee",
    data_hash="a59d.dir",
    code_commit="beef",
    code_version="v1",
    config={"name": "tiny", "labels": {"level_ranges": [[0, "inf"]]}},
    categories=[{"id": 1, "name": "cell"}],
    metrics={"mask_ap": 0.41, "mask_ap50": 0.83},
)


@pytest.fixture
def registry(uri):
    return open_registry(uri)


@pytest.fixture
def add(registry, tmp_path):
    def add(weights, facts=FACTS):
        return registry.add(make_archive(tmp_path / f"{weights}.mar", weights), facts)

    return add


def test_new_registry_has_no_champion_and_no_history(registry):
    assert registry.champion() is None
    assert promotions_of(registry) == []


def test_record_keeps_all_facts(registry, add):
    record = add("a")
    assert registry.record(record.version) == record
    assert record.facts == FACTS
    assert record.created.endswith("+00:00")


def test_equal_version_keeps_its_first_archive_and_record(registry, add, tmp_path):
    first = add("a")
    other = make_archive(tmp_path / "other.mar", "a", more=b"packed with another engine")
    again = registry.add(other, replace(FACTS, metrics={"mask_ap": 0.9}))
    assert again == first == registry.find("a")
    fetched = registry.fetch("a", tmp_path / "fetched")
    assert fetched.read_bytes() == (tmp_path / "a.mar").read_bytes()


def test_archive_that_a_killed_run_stored_without_record_is_kept(registry, add, tmp_path):
    stored = make_archive(tmp_path / "stored.mar", "a", more=b"of the killed run")
    registry._objects.create("models/a.mar", stored.path)
    record = add("a")
    assert (record.archive_sha256, record.archive_size) == (
        stored.sha256,
        stored.path.stat().st_size,
    )
    registry.fetch("a", tmp_path / "fetched")


def test_damaged_archive_without_record_is_refused(registry, add, tmp_path):
    (tmp_path / "half").write_bytes(b"half")
    registry._objects.create("models/a.mar", tmp_path / "half")
    with pytest.raises(UnusableModelError, match=r"models/a\.mar is damaged.*remove it"):
        add("a")
    assert registry.find("a") is None


def test_archive_of_another_version_without_record_is_refused(registry, add, tmp_path):
    registry._objects.create("models/a.mar", make_archive(tmp_path / "b.mar", "b").path)
    with pytest.raises(UnusableModelError, match=r"models/a\.mar is damaged \(it holds version b"):
        add("a")
    assert registry.find("a") is None


def test_archive_is_where_its_uri_points(registry, add, tmp_path):
    record = add("a")
    uri = registry.archive_uri(record)
    assert uri == f"{registry.where}/models/a.mar"
    fetch_file(uri, tmp_path / "fetched.mar", sha256=record.archive_sha256)
    assert (tmp_path / "fetched.mar").read_bytes() == (tmp_path / "a.mar").read_bytes()


def test_something_else_in_the_place_of_an_archive_is_noticed(registry, add):
    record = add("a")
    replace_archive(registry, b"half")
    with pytest.raises(UnusableModelError, match=f"has 4 bytes, not {record.archive_size}"):
        registry.archive_uri(record)


def replace_archive(registry, data):
    tag = registry._objects.read("models/a.mar")[1]
    assert registry._objects.write("models/a.mar", data, expected_tag=tag)


def test_unknown_version_is_named(registry, tmp_path):
    for ask in (
        lambda: registry.fetch("abc", tmp_path / "x"),
        lambda: registry.promote("abc", expected=None),
    ):
        with pytest.raises(UnknownVersionError, match="no model abc"):
            ask()


def test_promotions_are_kept_in_order(registry, add):
    first, second = add("a").version, add("b").version
    registry.promote(first, expected=None)
    registry.promote(second, expected=first)
    assert registry.champion().version == second
    assert [(move["version"], move["previous"]) for move in promotions_of(registry)] == [
        (first, None),
        (second, first),
    ]


def test_an_old_model_can_become_champion_again(registry, add):
    first, second = add("a").version, add("b").version
    registry.promote(first, expected=None)
    registry.promote(second, expected=first)
    registry.promote(first, expected=second)
    assert registry.champion().version == first


def test_repeating_a_promotion_changes_nothing(registry, add):
    version = add("a").version
    registry.promote(version, expected=None)
    registry.promote(version, expected=None)
    assert len(promotions_of(registry)) == 1


@pytest.mark.parametrize("expected", [None, "0123456789ab"])
def test_promotion_over_another_champion_than_expected_is_refused(registry, add, expected):
    first, second = add("a").version, add("b").version
    registry.promote(first, expected=None)
    with pytest.raises(ConflictError, match=f"the champion is {first}, not {expected}"):
        registry.promote(second, expected=expected)
    assert registry.champion().version == first


def test_first_promotion_that_expects_a_champion_is_refused(registry, add):
    with pytest.raises(ConflictError, match="the champion is None"):
        registry.promote(add("a").version, expected="0123456789ab")


_PROMOTE = """
import sys
import zipfile
from polarmask_components.errors import ConflictError
from polarmask_components.registry.registry import open_registry
uri, version, expected = sys.argv[1:]
registry = open_registry(uri)
registry.champion()
print("ready", flush=True)
sys.stdin.readline()
try:
    registry.promote(version, expected=expected)
except ConflictError as error:
    sys.exit(3)
"""


def test_of_two_processes_that_promote_at_once_exactly_one_wins(registry, uri, add):
    registry.promote(add("start").version, expected=None)
    for turn in range(2):
        expected = registry.champion().version
        candidates = [add(f"{turn}-{name}").version for name in "ab"]
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", _PROMOTE, uri, version, expected],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for version in candidates
        ]
        for racer in racers:
            racer.stdout.readline()
        for racer in racers:
            racer.stdin.write(b"go\n")
            racer.stdin.flush()
        for racer in racers:
            racer.communicate(timeout=60)
        codes = [racer.returncode for racer in racers]
        assert sorted(codes) == [0, 3]
        assert registry.champion().version == candidates[codes.index(0)]
    assert len(promotions_of(registry)) == 3


_DIE_AT_WRITE = """
import os, signal, sys
from pathlib import Path
from polarmask_components.registry.registry import Facts, open_registry
from polarmask_serving.archive.read import read_archive
uri, model, expected = sys.argv[1:]
registry = open_registry(uri)
write = registry._objects.write
def die(name, data, *, expected_tag):
    if {name!r} in name:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(name, data, expected_tag=expected_tag)
registry._objects.write = die
record = registry.add(read_archive(Path(model)), Facts(data_commit="", data_hash="", code_commit="",
                                         code_version="", config={{}}, categories=[],
                                         metrics={{}}))
registry.promote(record.version, expected=expected)
"""


@pytest.mark.parametrize("name", ["models/new.json", "champion.json"])
def test_kill_in_the_middle_leaves_the_old_champion(registry, uri, add, tmp_path, name):
    old = add("old").version
    registry.promote(old, expected=None)
    archive = make_archive(tmp_path / "new.mar", "new")
    killed = subprocess.run(
        [sys.executable, "-c", _DIE_AT_WRITE.format(name=name), uri, archive.path, old], timeout=60
    )
    assert killed.returncode == -9
    assert registry.champion().version == old
    record = registry.add(archive, FACTS)
    registry.promote(record.version, expected=old)
    assert registry.fetch(record.version, tmp_path / "fetched").is_file()


def test_a_write_whose_answer_got_lost_counts_when_it_is_sent_again(s3_environment, tmp_path):
    objects = S3Objects.from_uri(f"s3://polarmask/{tmp_path.name}")
    assert objects.write("x", b"mine", expected_tag=None)
    assert objects.write("x", b"mine", expected_tag=None)
    assert not objects.write("x", b"another's", expected_tag=None)


def test_changed_archive_is_refused(registry, add, tmp_path):
    size = add("a").archive_size
    replace_archive(registry, b"b" * size)
    with pytest.raises(UnusableModelError, match=r"a\.mar is not what was stored.*promote another"):
        registry.fetch("a", tmp_path / "fetched")
    assert not list(tmp_path.glob("*fetched*"))


def test_missing_archive_is_named(tmp_path):
    registry = open_registry((tmp_path / "registry").as_uri())
    registry.add(make_archive(tmp_path / "a.mar", "a"), FACTS)
    (tmp_path / "registry" / "models" / "a.mar").unlink()
    with pytest.raises(UnusableModelError, match=r"models/a\.mar does not exist"):
        registry.fetch("a", tmp_path / "fetched")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda record: record.update(archive_sha256="0" * 64), id="other-hash"),
        pytest.param(lambda record: record.update(version="b"), id="other-version"),
        pytest.param(lambda record: record.pop("facts"), id="no-facts"),
        pytest.param(lambda record: record.update(format_version=9), id="other-format"),
    ],
)
def test_record_that_was_changed_is_refused(tmp_path, change):
    registry = open_registry(str(tmp_path / "registry"))
    registry.add(make_archive(tmp_path / "a.mar", "a"), FACTS)
    registry.promote("a", expected=None)
    path = tmp_path / "registry" / "models" / "a.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UnusableModelError, match=r"models/a\."):
        registry.fetch("a", tmp_path / "fetched")
    assert registry.champion_version() == "a"


@pytest.fixture
def old_registry(tmp_path):
    """What a release before wrote: models/VERSION/record.json, format version 1."""
    folder = tmp_path / "old"
    (folder / "models" / "abc" / "model").mkdir(parents=True)
    promotions = [{"version": "abc", "previous": None, "time": "2026-01-01T00:00:00+00:00"}]
    champion = {"format_version": 1, "promotions": promotions}
    (folder / "champion.json").write_text(json.dumps(champion))
    (folder / "models" / "abc" / "record.json").write_text(json.dumps({"format_version": 1}))
    return folder


@pytest.mark.parametrize(
    "use",
    [
        lambda registry, _: registry.champion_version(),
        lambda registry, _: registry.record("abc"),
        lambda registry, archive: registry.add(archive, FACTS),
    ],
    ids=["champion", "record", "add"],
)
def test_registry_of_the_old_form_is_refused_with_the_cure_and_not_touched(
    old_registry, tmp_path, use
):
    before = sha256_of_files(old_registry)
    archive = make_archive(tmp_path / "abc.mar", "abc")
    with pytest.raises(UnusableModelError, match=r"format version 1.*set deploy_registry to a new"):
        use(open_registry(str(old_registry)), archive)
    assert sha256_of_files(old_registry) == before


def test_a_place_that_is_not_writable_is_found(registry, tmp_path):
    registry.check_writable()
    registry.check_writable()
    assert registry.champion() is None
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="may write to"):
        open_registry(str(tmp_path / "file" / "registry")).check_writable()


def test_unknown_format_version_is_refused_by_name(tmp_path):
    (tmp_path / "champion.json").write_text(json.dumps({"format_version": 9, "promotions": []}))
    with pytest.raises(UnusableModelError, match="format version 9"):
        open_registry(str(tmp_path)).champion()


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "s3:///x"])
def test_unusable_place_is_refused(uri):
    with pytest.raises(StorageError):
        open_registry(uri)


@pytest.mark.parametrize("uri", ["s3:/team/x", "s3//team/x", "S3:team/x", "~/x", "~ann/x"])
def test_a_misspelt_address_is_no_folder(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"write s3://bucket/prefix.*or \./"):
        open_registry(uri)
    open_registry(f"./{uri}").check_writable()


def test_missing_bucket_is_named_with_what_to_check(s3_environment):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x.*AWS_ENDPOINT_URL"):
        open_registry("s3://no-such-bucket/x").champion()
