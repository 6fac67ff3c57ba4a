"""`polarmask models` on a real registry; roll-backs that serve are with the deployments' tests."""

import json
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from polarmask_components.commands import models
from polarmask_components.deploy.ask_server import is_reachable
from polarmask_components.errors import StorageError
from polarmask_components.registry.history import known_models, previous_champion
from polarmask_components.registry.registry import Facts, open_registry
from registries import make_archive

ROOT = Path(__file__).parents[2]
FACTS = Facts(
    data_commit="c0ffee1234",
    data_hash="a59d.dir",
    code_commit="beef",
    code_version="v1",
    config={"name": "tiny", "optim": {"epochs": 2, "lr": 0.01}},
    categories=[{"id": 1, "name": "cell"}],
    metrics={"mask_ap": 0.41, "images": 69},
)
BETTER = replace(
    FACTS,
    data_hash="beef.dir",
    config={"name": "tiny", "optim": {"epochs": 20, "lr": 0.01}},
    metrics={"mask_ap": 0.45, "images": 70},
)


@pytest.fixture
def registry(uri, tmp_path):
    """A former champion, the champion, two that were stopped, one that was never deployed."""
    registry = open_registry(uri)
    facts = {"aaa1": FACTS, "aaa2": BETTER, "bbb1": FACTS, "ccc1": FACTS}
    for version, each in facts.items():
        registry.add(make_archive(tmp_path / f"{version}.mar", version), each)
    registry.promote("aaa1", expected=None)
    registry.promote("aaa2", expected="aaa1")
    registry.record_stop("bbb1", FACTS, "the deployment failed: it does not load")
    registry.record_stop("ddd1", FACTS, "the gate: below")
    registry.record_stop("ddd1", FACTS, "the gate: mask AP 0.3 is below the floor")
    return registry


def run(registry, *arguments, code=0):
    command, *rest = arguments
    assert models.main([command, "--registry", registry.where, *rest]) == code


def test_each_model_has_a_state_and_the_reason(registry):
    found = {each.version: each for each in known_models(registry)}
    assert {version: each.state for version, each in found.items()} == {
        "aaa1": "former champion",
        "aaa2": "champion",
        "bbb1": "not served",
        "ccc1": "registered",
        "ddd1": "not served",
    }
    assert found["bbb1"].note == "the deployment failed: it does not load"
    assert found["ddd1"].note == "the gate: mask AP 0.3 is below the floor"  # the last reason
    assert found["ddd1"].record is None
    assert found["ddd1"].facts == FACTS
    assert previous_champion(registry) == "aaa1"


def test_a_stopped_candidate_takes_no_room_and_no_name(registry):
    assert "ddd1" not in registry.versions()
    assert registry.find("ddd1") is None
    assert registry.stopped_versions() == ["bbb1", "ddd1"]


def test_a_champion_that_was_stopped_before_is_the_champion(registry):
    registry.promote("bbb1", expected="aaa2")
    states = {each.version: each.state for each in known_models(registry)}
    assert (states["bbb1"], states["aaa2"]) == ("champion", "former champion")


def test_the_first_image_of_a_version_is_kept(registry):
    assert registry.image("aaa1") is None
    registry.keep_image("aaa1", b"first")
    registry.keep_image("aaa1", b"second")
    assert registry.image("aaa1") == b"first"
    assert registry.versions() == ["aaa1", "aaa2", "bbb1", "ccc1"]


def test_list_has_a_line_for_each_newest_first(registry, capsys):
    run(registry, "list")
    head, *lines, place = capsys.readouterr().out.splitlines()
    assert head.split() == ["version", "created", "data", "mask", "AP", "state"]
    assert [line.split()[0] for line in lines] == ["ddd1", "ccc1", "bbb1", "aaa2", "aaa1"]
    assert "c0ffee1  0.4500   champion: since 20" in lines[3]
    assert place == f"registry: {registry.where}"


def test_list_as_json_has_the_same_in_full(registry, capsys):
    run(registry, "list", "--json")
    first = json.loads(capsys.readouterr().out)[0]
    assert first.pop("created").endswith("+00:00")
    assert first == {
        "version": "ddd1",
        "data_commit": "c0ffee1234",
        "data_hash": "a59d.dir",
        "mask_ap": 0.41,
        "state": "not served",
        "note": "the gate: mask AP 0.3 is below the floor",
    }


def test_show_has_all_of_a_record(registry, capsys):
    run(registry, "show", "champion")
    text = capsys.readouterr().out
    for part in ("aaa2", "champion: since", "/models/aaa2.mar, ", "data.hash", "optim.epochs  20"):
        assert part in text
    run(registry, "show", "aaa2", "--json")
    plain = json.loads(capsys.readouterr().out)
    assert plain["facts"]["config"] == BETTER.config
    assert plain["archive"]["uri"] == f"{registry.where}/models/aaa2.mar"
    assert [each["previous"] for each in plain["promotions"]] == ["aaa1"]
    run(registry, "show", "ddd1", "--json")
    assert json.loads(capsys.readouterr().out)["archive"] is None


def test_diff_names_what_differs_and_nothing_else(registry, capsys):
    run(registry, "diff", "aaa1", "champion")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["aaa1", "aaa2"],
        ["state", "former", "champion", "champion"],
        ["data.hash", "a59d.dir", "beef.dir"],
        ["metrics.images", "69", "70", "+1"],
        ["metrics.mask_ap", "0.4100", "0.4500", "+0.0400"],
        ["settings.optim.epochs", "2", "20"],
        ["equal:", "code,", "categories"],
    ]
    run(registry, "diff", "aaa1", "aaa2", "--json")
    assert json.loads(capsys.readouterr().out)["settings"] == {"optim.epochs": [2, 20]}


@pytest.mark.parametrize(
    ("arguments", "expected_text"),
    [
        (["show", "aaa"], "no model aaa; aaa1, aaa2 begin with it"),
        (["show", "x"], "`polarmask models list` shows all"),
        (["rollback", "ddd1", "--image", __file__], "has no archive of ddd1, not served: the gate"),
        (["rollback"], "no image was kept for aaa1"),
        (["rollback", "--trial", '{"copies": 0.1}'], "deploy_trial needs a cluster"),
    ],
)
def test_what_cannot_be_is_refused_by_name(registry, capsys, arguments, expected_text):
    target = ["--target", "nowhere"] if "rollback" in arguments else []
    run(registry, *arguments, *target, code=2)
    assert expected_text in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x", "3", "{copies: 0.1}"])
def test_a_trial_that_is_no_json_object_is_refused_with_an_example(registry, capsys, text):
    with pytest.raises(SystemExit):
        run(registry, "rollback", "--target", "nowhere", "--trial", text)
    assert """such as '{"copies": 0.1}'""" in capsys.readouterr().err


def test_roll_backs_one_after_the_other_go_back_further(registry, capsys):
    registry.promote("ccc1", expected="aaa2")
    for expected in ("aaa2", "aaa1"):
        assert previous_champion(registry) == expected
        registry.promote(expected, expected=registry.champion_version())
    run(registry, "rollback", code=2)
    assert "had no champion before aaa1; name a version" in capsys.readouterr().err


def test_an_empty_registry_is_no_error(uri, capsys):
    run(open_registry(uri), "list")
    assert "no model yet" in capsys.readouterr().out
    run(open_registry(uri), "rollback", code=2)
    assert "had no champion before" in capsys.readouterr().err


def test_the_registry_of_this_machine_is_found_without_an_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert models.main(["list"]) == 2
    assert "no registry at runs/shared/registry" in capsys.readouterr().err
    registry = open_registry("runs/shared/registry")
    for version in ("a", "b"):
        registry.add(make_archive(tmp_path / f"{version}.mar", version), FACTS)
    registry.promote("a", expected=None)
    registry.promote("b", expected="a")
    assert models.main(["list"]) == 0
    assert "former champion" in capsys.readouterr().out
    assert models.main(["rollback"]) == 2
    assert f"no server at {tmp_path}/runs/shared/server" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_hides_no_other(tmp_path, capsys):
    registry = open_registry(str(tmp_path / "registry"))
    for version in ("a", "b"):
        registry.add(make_archive(tmp_path / f"{version}.mar", version), FACTS)
    (tmp_path / "registry" / "models" / "a.json").write_text("{")
    run(registry, "list")
    out = capsys.readouterr().out
    assert "unreadable: " in out
    assert "registered: passed the gate" in out
    run(registry, "diff", "a", "b")


def test_why_a_model_was_stopped_cannot_be_read_and_the_model_stays_sound(tmp_path):
    registry = open_registry(str(tmp_path / "registry"))
    for version in ("a", "b"):
        registry.add(make_archive(tmp_path / f"{version}.mar", version), FACTS)
    registry.promote("a", expected=None)
    for version in ("a", "b", "c"):
        registry.record_stop(version, FACTS, "the deployment failed")
        (tmp_path / "registry" / "stopped" / f"{version}.json").write_text("{")
    found = {each.version: each for each in known_models(registry)}
    assert {version: each.state for version, each in found.items()} == {
        "a": "champion",
        "b": "not served",
        "c": "unreadable",
    }
    assert found["a"].record is not None
    assert "stopped/b.json" in found["b"].note


def test_two_that_are_stopped_at_once_leave_a_whole_record(tmp_path, monkeypatch):
    registry = open_registry(str(tmp_path))
    write = registry._objects.write

    def slower(name, data, *, expected_tag):
        monkeypatch.setattr(registry._objects, "write", write)
        registry.record_stop("a", FACTS, "the other's")
        return write(name, data, expected_tag=expected_tag)

    monkeypatch.setattr(registry._objects, "write", slower)
    registry.record_stop("a", FACTS, "ours")
    assert registry.stopped("a").reason == "ours"
    monkeypatch.setattr(registry._objects, "write", lambda *_, **__: False)
    with pytest.raises(StorageError, match="keeps changing"):
        registry.record_stop("a", FACTS, "never")


def test_an_address_that_refuses_is_reachable():
    assert is_reachable("http://127.0.0.1:9/predictions/x")
    assert not is_reachable("http://no-such-host.invalid:80/")


def test_entry_points_name_functions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for place in project["entry-points"]["polarmask.programs"].values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name))
