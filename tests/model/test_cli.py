import json

import pytest
from PIL import Image

from polarmask.cli import main
from polarmask.presets import PRESETS


@pytest.fixture(scope="module")
def run_folder(drawn_data, tmp_path_factory):
    """A run of a few steps, made by the command a user types."""
    out = tmp_path_factory.mktemp("cli") / "run"
    settings = ["model.channels=32", "model.tower_depth=1", "optim.epochs=2", "optim.batch_size=4"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    code = main(
        [
            *("train", "--preset", "tiny", "--data", str(drawn_data), "--out", str(out)),
            *("--provenance", "data_commit=3f2a1bc", *flags),
        ]
    )
    assert code == 0
    return out


@pytest.mark.parametrize("command", ["precompute", "train", "evaluate", "predict"])
def test_help_ends_with_an_example_to_copy(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"polarmask {command} " in capsys.readouterr().out.split("example:")[1]


def test_train_keeps_where_the_data_came_from(run_folder):
    card = json.loads((run_folder / "model" / "model.json").read_text())
    assert card["provenance"] == {"data_commit": "3f2a1bc"}


def test_evaluate_prints_ap_and_writes_a_page(run_folder, drawn_data, tmp_path, capsys):
    flags = ["--model", str(run_folder / "model"), "--data", str(drawn_data)]
    assert main(["evaluate", *flags, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("mask AP 0.")
    assert "mask_ap50" in json.loads((tmp_path / "evaluation.json").read_text())
    assert (tmp_path / "report.html").read_text().lower().startswith("<!doctype html>")


def test_predict_takes_files_and_folders(run_folder, drawn_data, tmp_path):
    images = sorted((drawn_data / "images").iterdir())
    flags = ["--model", str(run_folder / "model"), "--out", str(tmp_path), "--score", "0"]
    assert main(["predict", *flags, str(drawn_data / "images"), str(images[0])]) == 0
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert len(entries) == len(images) + 1
    for entry in entries:
        with Image.open(tmp_path / entry["overlay"]) as overlay:
            assert min(overlay.size) > 0
    assert (tmp_path / "contact_sheet.jpg").is_file()


def test_precompute_reports_what_labels_reach(drawn_data, tmp_path, capsys):
    flags = ["--preset", "tiny", "--data", str(drawn_data), "--out", str(tmp_path)]
    assert main(["precompute", *flags]) == 0
    assert "train: 8 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "tiny", "--data", "nowhere", "--out", "x"], "nowhere"),
        (["train", "--preset", "big", "--data", "d", "--out", "x"], "there are: coco-r50-1x"),
        (["evaluate", "--model", "nowhere", "--data", "d"], "does not exist"),
        (["predict", "--model", "nowhere", "--out", "x", "gone.png"], "gone.png does not exist"),
    ],
    ids=["no-data", "no-preset", "no-model", "no-image"],
)
def test_a_mistake_is_one_line_that_names_it(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"polarmask {arguments[0]}: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_all_presets_are_named_in_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert set(PRESETS) <= set(capsys.readouterr().out.replace(",", " ").split())
