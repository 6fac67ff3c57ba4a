import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from polarmask_components.errors import (
    ConflictError,
    RegistryError,
    UnknownVersionError,
    UnusableModelError,
)
from polarmask_components.registry.local import LocalObjects
from polarmask_components.registry.registry import Facts, Registry, open_registry
from polarmask_components.registry.s3 import S3Objects

FACTS = Facts(
    data_commit="c0ffee",
    data_hash="a59d.dir",
    code_commit="beef",
    code_version="v1",
    config={"name": "tiny", "labels": {"level_ranges": [[0, "inf"]]}},
    metrics={"mask_ap": 0.41, "mask_ap50": 0.83},
)


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "a registry")
    request.getfixturevalue("s3_environment")
    return f"s3://polarmask/{tmp_path.name}/registry"


@pytest.fixture
def registry(uri):
    return open_registry(uri)


@pytest.fixture
def add(registry, tmp_path):
    def add(weights, facts=FACTS):
        return registry.add(make_model(tmp_path / f"model {weights}", weights), facts)

    return add


def make_model(folder, weights):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights.encode() * 1000)
    (folder / "model.json").write_text("{}")
    return folder


def test_new_registry_has_no_champion_and_no_history(registry):
    assert registry.champion() is None
    assert registry.history() == ()


def test_record_keeps_all_facts(registry, add):
    record = add("a")
    assert registry.record(record.version) == record
    assert record.facts == FACTS
    assert sorted(record.files) == ["model.json", "model.safetensors"]
    assert record.created.endswith("+00:00")


def test_version_follows_from_content_alone(add):
    first = add("a")
    again = add("a", replace(FACTS, metrics={"mask_ap": 0.9}))
    assert again == first  # the first record stays, too
    assert add("b").version != first.version


def test_fetched_model_equals_the_stored_one(registry, add, tmp_path):
    version = add("a").version
    folder = registry.fetch(version, tmp_path / "fetched")
    assert (folder / "model.safetensors").read_bytes() == b"a" * 1000
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_empty_model_folder_is_refused(registry, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="holds no files"):
        registry.add(tmp_path / "empty", FACTS)


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
    assert [(move.version, move.previous) for move in registry.history()] == [
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
    assert len(registry.history()) == 1


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
    assert len(registry.history()) == 3


_DIE_AT_WRITE = """
import os, signal, sys
from pathlib import Path
from polarmask_components.registry.registry import Facts, open_registry
uri, model, expected = sys.argv[1:]
registry = open_registry(uri)
write = registry._objects.write
def die(name, data, *, expected_tag):
    if {name!r} in name:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(name, data, expected_tag=expected_tag)
registry._objects.write = die
record = registry.add(Path(model), Facts(data_commit="", data_hash="", code_commit="",
                                         code_version="", config={{}}, metrics={{}}))
registry.promote(record.version, expected=expected)
"""


@pytest.mark.parametrize("name", ["record.json", "champion.json"])
def test_kill_in_the_middle_leaves_the_old_champion(registry, uri, add, tmp_path, name):
    old = add("old").version
    registry.promote(old, expected=None)
    model = make_model(tmp_path / "new", "new")
    killed = subprocess.run(
        [sys.executable, "-c", _DIE_AT_WRITE.format(name=name), uri, model, old], timeout=60
    )
    assert killed.returncode == -9
    assert registry.champion().version == old
    record = registry.add(model, FACTS)
    registry.promote(record.version, expected=old)
    assert registry.fetch(record.version, tmp_path / "fetched").is_dir()


def test_a_write_whose_answer_got_lost_counts_when_it_is_sent_again(s3_environment, tmp_path):
    objects = S3Objects.from_uri(f"s3://polarmask/{tmp_path.name}")
    assert objects.write("x", b"mine", expected_tag=None)
    assert objects.write("x", b"mine", expected_tag=None)
    assert not objects.write("x", b"another's", expected_tag=None)


def test_changed_model_file_is_refused(tmp_path):
    registry = open_registry((tmp_path / "registry").as_uri())
    version = registry.add(make_model(tmp_path / "model", "a"), FACTS).version
    stored = tmp_path / "registry" / "models" / version / "model" / "model.safetensors"
    stored.write_bytes(b"b" * 1000)
    with pytest.raises(UnusableModelError, match=r"model\.safetensors"):
        registry.fetch(version, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def change_record(folder, version, change):
    path = folder / "models" / version / "record.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/../../escaped", "..\\escaped"])
def test_record_that_names_a_file_outside_its_folder_is_refused(tmp_path, name):
    registry = open_registry(str(tmp_path / "registry"))
    files = {name: "0" * 64}
    content = "".join(f"{key}\0{value}\n" for key, value in files.items())
    version = hashlib.sha256(content.encode()).hexdigest()[:12]  # as whoever forges it would
    first = registry.add(make_model(tmp_path / "model", "a"), FACTS).version
    models = tmp_path / "registry" / "models"
    (models / first).rename(models / version)
    change_record(tmp_path / "registry", version, lambda r: r.update(version=version, files=files))
    with pytest.raises(UnusableModelError, match="other files"):
        registry.fetch(version, tmp_path / "to" / "fetched")
    assert not list((tmp_path).rglob("escaped"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda record: record["files"].pop("model.json"), id="file-left-out"),
        pytest.param(lambda r: r["files"].update({"model.json": "0" * 64}), id="other-hash"),
        pytest.param(lambda record: record.pop("facts"), id="no-facts"),
        pytest.param(lambda record: record.update(format_version=9), id="other-format"),
    ],
)
def test_record_that_was_changed_is_refused(tmp_path, change):
    registry = open_registry(str(tmp_path / "registry"))
    version = registry.add(make_model(tmp_path / "model", "a"), FACTS).version
    registry.promote(version, expected=None)
    change_record(tmp_path / "registry", version, change)
    with pytest.raises(UnusableModelError, match=version):
        registry.fetch(version, tmp_path / "fetched")
    assert registry.champion_version() == version


def test_a_part_of_a_model_can_be_fetched(registry, add, tmp_path):
    folder = registry.fetch(add("a").version, tmp_path / "fetched", only=("model.json",))
    assert [path.name for path in folder.iterdir()] == ["model.json"]


def test_missing_model_file_is_named(tmp_path):
    registry = open_registry(str(tmp_path / "registry"))
    version = registry.add(make_model(tmp_path / "model", "a"), FACTS).version
    (tmp_path / "registry" / "models" / version / "model" / "model.json").unlink()
    with pytest.raises(UnusableModelError, match=r"model\.json"):
        registry.fetch(version, tmp_path / "fetched")


def test_writable_place_is_told_from_one_that_is_not(registry, tmp_path):
    registry.check_writable()
    registry.check_writable()
    assert registry.champion() is None
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="may write to"):
        open_registry(str(tmp_path / "file" / "registry")).check_writable()


def test_unknown_format_version_is_refused_by_name(tmp_path):
    (tmp_path / "champion.json").write_text(json.dumps({"format_version": 9, "promotions": []}))
    with pytest.raises(RegistryError, match="format version 9"):
        Registry(LocalObjects(tmp_path)).champion()


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "s3:///x"])
def test_unusable_place_is_refused(uri):
    with pytest.raises(RegistryError):
        open_registry(uri)


def test_missing_bucket_is_named_with_what_to_check(s3_environment):
    with pytest.raises(RegistryError, match=r"s3://no-such-bucket/x.*AWS_ENDPOINT_URL"):
        open_registry("s3://no-such-bucket/x").champion()
