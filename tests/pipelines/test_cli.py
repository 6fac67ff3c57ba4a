import pytest

from polarmask_pipelines.__main__ import main
from polarmask_pipelines.commands import local
from polarmask_pipelines.commands.local import shorten
from polarmask_pipelines.local_run import Outcome
from polarmask_pipelines.summary import Summary


@pytest.mark.parametrize(
    ("assignment", "expected_text"),
    [
        ("train_sets=x", "data_repository, data_revision"),
        ("train_set", "write NAME=VALUE"),
        ("eval_floor_ap=high", "not of type float"),
        ("train_nodes=1.5", "not of type int"),
    ],
)
def test_wrong_parameter_is_named_before_anything_runs(tmp_path, capsys, assignment, expected_text):
    assert main(["run", "--out", str(tmp_path / "run"), "--param", assignment]) == 2
    assert expected_text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_stopping_where_no_server_runs_says_so(tmp_path, capsys):
    assert main(["stop", str(tmp_path)]) == 0
    assert "no server runs" in capsys.readouterr().out


def test_damaged_server_record_is_reported_in_one_line(tmp_path, capsys):
    (tmp_path / "pod.json").write_text("{")
    assert main(["stop", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "pod.json" in printed
    assert printed.count("\n") == 1


def test_run_folder_that_cannot_be_made_is_reported_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["run", "--out", str(tmp_path / "file" / "run")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "Traceback" not in printed


def test_stop_prints_after_the_server_ended(tmp_path, capsys, monkeypatch):
    printed_before = []
    monkeypatch.setattr(local, "is_serving", lambda _: True)
    monkeypatch.setattr(
        local, "stop_server", lambda _: printed_before.append(capsys.readouterr().out)
    )
    assert main(["stop", str(tmp_path)]) == 0
    assert printed_before == [""]
    assert capsys.readouterr().out == "stopped\n"


def test_demo_that_fails_leaves_no_server(tmp_path, monkeypatch):
    failed = Outcome(Summary(), "why", tmp_path / "server", "")
    stopped = []
    monkeypatch.setattr(local, "run", lambda *_: failed)
    monkeypatch.setattr(local, "stop_server", stopped.append)
    monkeypatch.setenv("KEEP", "1")
    assert main(["demo"]) == 1
    assert stopped == []
    monkeypatch.delenv("KEEP")
    assert main(["demo"]) == 1
    assert stopped == [failed.server]


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 3)])
def test_a_stopped_run_begins_with_the_verdict_and_ends_with_its_code(
    tmp_path, monkeypatch, capsys, passed, code
):
    gate = {"passed": passed, "reason": "mask AP 0.1000 is below the floor 0.2500"}
    summary = Summary(
        mask_ap=0.1, mask_ap50=0.2, gate=gate, champion="abc", overlay="o", sample="s", model="m"
    )
    ended = Outcome(summary, "", tmp_path / "server", "http://127.0.0.1:1/predictions/polarmask")
    monkeypatch.setattr(local, "run", lambda *_: ended)
    assert main(["run", "--out", str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert printed.startswith(f"\nSTOPPED by the gate: {gate['reason']}\n") is not passed
    assert ("curl" in printed) is passed
    assert ("the champion, version abc, still answers" in printed) is not passed


def test_long_lists_of_an_answer_are_cut():
    answer = {"instances": [{"bbox": [1, 2, 3, 4], "polygon": [[0, 1]] * 36}] * 40}
    assert shorten(answer) == {
        "instances": [
            {"bbox": [1, 2, 3, 4], "polygon": [[0, 1], [0, 1], "... 34 more"]},
            {"bbox": [1, 2, 3, 4], "polygon": [[0, 1], [0, 1], "... 34 more"]},
            "... 38 more",
        ]
    }
