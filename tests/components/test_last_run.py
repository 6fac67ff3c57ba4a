from dataclasses import asdict
from types import SimpleNamespace

import pytest

from polarmask_components.errors import StorageError
from polarmask_components.provenance.last_run import RunInputs, decide, remember, settings_id
from polarmask_components.registry.registry import open_registry
from polarmask_components.steps.check_changed import check_changed
from polarmask_components.steps.remember_run import remember_run
from polarmask_components.storage.objects import open_objects

SETTINGS = {
    "preset": "tiny",
    "overrides": "optim.epochs=2 seed=1",
    "floor_ap": 0.25,
    "model_name": "polarmask",
    "target": "kubernetes://ml/polarmask",
}


def inputs_of(data_hash="a59d.dir", code_version="c0de", **changes):
    return RunInputs(data_hash, code_version, settings_id(**SETTINGS | changes))


INPUTS = inputs_of()


@pytest.fixture
def objects(uri):
    return open_objects(uri)


def decision_of(objects, inputs=INPUTS):
    return decide(objects, inputs, only_if_changed=True)


def test_first_run_continues_and_its_twin_stops(objects):
    assert decision_of(objects).continues
    remember(objects, INPUTS)
    decision = decision_of(objects)
    assert not decision.continues
    assert "nothing to do: data a59d.dir, code c0de" in decision.reason


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        ({"data_hash": "beef.dir"}, "the data changed from a59d.dir to beef.dir"),
        ({"code_version": "beef"}, "the code changed from c0de to beef"),
        ({"preset": "coco-r50-1x"}, "none with these settings"),
        ({"overrides": "optim.epochs=3 seed=1"}, "none with these settings"),
        ({"floor_ap": 0.3}, "none with these settings"),
        ({"model_name": "other"}, "none with these settings"),
        ({"target": "kubernetes://ml/other"}, "none with these settings"),
        ({"initial": "champion"}, "none with these settings"),
    ],
)
def test_every_change_lets_the_run_continue_and_is_named(objects, change, expected_text):
    remember(objects, INPUTS)
    decision = decision_of(objects, inputs_of(**change))
    assert decision.continues
    assert expected_text in decision.reason


def test_spelling_that_means_the_same_is_no_change(objects):
    remember(objects, INPUTS)
    same = inputs_of(overrides="  optim.epochs=2   seed=1 ")
    assert not decision_of(objects, same).continues


def test_data_that_went_back_is_a_change(objects):
    newer = inputs_of(data_hash="beef.dir")
    remember(objects, INPUTS)
    remember(objects, newer)
    assert decision_of(objects, INPUTS).continues  # the champion learned from the newer


def test_schedules_with_different_settings_do_not_wake_each_other(objects):
    other = inputs_of(preset="coco-r50-1x")
    remember(objects, INPUTS)
    remember(objects, other)
    assert not decision_of(objects, INPUTS).continues
    assert not decision_of(objects, other).continues


def test_who_does_not_ask_decision_of(objects):
    remember(objects, INPUTS)
    assert decide(objects, INPUTS, only_if_changed=False).continues


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format_version": 9}', b"\xff"])
def test_damaged_memory_lets_the_run_continue_and_is_written_anew(objects, content):
    objects.write(INPUTS.name, content, expected_tag=None)
    assert "can't be read" in decision_of(objects).reason
    remember(objects, INPUTS)
    assert not decision_of(objects).continues


def test_of_two_that_remember_at_once_none_fails(objects, monkeypatch):
    write = objects.write
    rival = inputs_of(data_hash="beef.dir")

    def write_after_a_rival(name, data, *, expected_tag):
        monkeypatch.setattr(objects, "write", write)
        remember(objects, rival)
        return write(name, data, expected_tag=expected_tag)

    monkeypatch.setattr(objects, "write", write_after_a_rival)
    remember(objects, INPUTS)
    assert not decision_of(objects).continues


def test_place_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="may write to"):
        remember(open_objects(str(tmp_path / "file" / "registry")), INPUTS)


def test_the_champion_is_not_touched(objects, uri):
    remember(objects, INPUTS)
    assert open_registry(uri).champion_version() is None


def test_steps_remember_and_decide(uri, tmp_path):
    given = asdict(INPUTS)
    note = SimpleNamespace(path=str(tmp_path / "note.md"))

    def check(**changed):
        return check_changed.python_func(
            **(given | changed), registry=uri, only_if_changed=True, note=note
        )

    assert check() is True
    assert remember_run.python_func(**given, registry=uri) is None
    assert check() is False
    assert "nothing to do" in (tmp_path / "note.md").read_text()
    assert check(data_hash="beef.dir") is True
