import json

import pytest

from factories import make_tiny_coco
from polarmask.cli import main
from polarmask.config.presets import PRESETS
from polarmask.inference.model_folder import read_card


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
    out = tmp_path / "predictions.json"
    flags = ["--model", str(run_folder / "model"), "--out", str(out), "--score", "0"]
    # An image that is given twice is looked at once.
    assert main(["predict", *flags, str(drawn_data / "images"), str(images[0])]) == 0
    assert [entry["image"] for entry in json.loads(out.read_text())] == [str(i) for i in images]


def test_precompute_reports_what_labels_reach(drawn_data, tmp_path, capsys):
    flags = ["--preset", "tiny", "--data", str(drawn_data), "--out", str(tmp_path)]
    assert main(["precompute", *flags]) == 0
    assert "train: 8 images" in capsys.readouterr().out


def test_precompute_does_without_validation_data_and_says_so(tmp_path, capsys):
    data = make_tiny_coco(tmp_path / "data", images=2)
    (data / "annotations" / "instances_val.json").unlink()
    flags = ["--preset", "tiny", "--data", str(data), "--out", str(tmp_path / "labels")]
    assert main(["precompute", *flags]) == 0
    printed = capsys.readouterr().out
    assert "has no instances_val.json" in printed
    assert "train: 2 images" in printed


def test_a_file_that_cannot_be_written_is_one_line(run_folder, drawn_data, tmp_path, capsys):
    (tmp_path / "taken").touch()
    flags = ["--model", str(run_folder / "model"), "--out", str(tmp_path / "taken")]
    assert main(["visualize", *flags, str(drawn_data / "images")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path / "taken") in line


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_cuda_that_is_not_there_is_named(
    command, run_folder, drawn_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    own = {
        "train": ["--data", str(drawn_data), "--out", str(tmp_path)],
        "evaluate": ["--data", str(drawn_data), "--model", str(run_folder / "model")],
        "predict": [
            *("--model", str(run_folder / "model"), "--out", str(tmp_path)),
            str(drawn_data / "images"),
        ],
    }
    assert main([command, "--device", "cuda", *own[command]]) == 2
    assert "device cuda:0 does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--loader-workers", "-1"], ["--threads", "0"], ["--threads", "two"]],
    ids=["workers", "threads", "word"],
)
def test_a_number_that_cannot_work_is_refused_by_its_flag(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "d", "--out", "o", *flags])
    assert stop.value.code == 2
    assert f"argument {flags[0]}: {flags[1]!r} is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "tiny", "--data", "nowhere", "--out", "x"], "nowhere"),
        (["train", "--preset", "big", "--data", "d", "--out", "x"], "there are: coco-r101-1x"),
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


def test_images_per_process_set_the_batch_and_with_it_the_rate(drawn_data, tmp_path):
    flags = ["--preset", "tiny", "--data", str(drawn_data), "--out", str(tmp_path)]
    settings = ["model.channels=32", "model.tower_depth=1", "optim.epochs=0.25"]
    changes = [flag for setting in settings for flag in ("--set", setting)]
    assert main(["train", *flags, *changes, "--images-per-process", "2"]) == 0
    optim = read_card(tmp_path / "model").config.optim
    assert (optim.batch_size, optim.lr_batch_size) == (2, 4)
    # One step: the warm-up of a third of no steps is none.
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["lr"] == pytest.approx(optim.lr / 2)
