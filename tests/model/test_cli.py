import json
import logging
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from factories import make_tiny_coco
from polarmask.cli import main
from polarmask.config.presets import PRESETS, preset
from polarmask.errors import ModelFormatError
from polarmask.inference.model_folder import load_model, read_card, save_model

ROOT = Path(__file__).parents[2]


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
    assert (tmp_path / "evaluation.html").read_text().lower().startswith("<!doctype html>")


def links(path):
    return re.findall(r'href="([^"]+)"', path.read_text())


def test_commands_add_their_pages_to_the_run(run_folder, drawn_data, tmp_path, capsys):
    assert {"data.html", "labels.html", "training.html"} <= set(links(run_folder / "index.html"))
    assert "http-equiv" not in (run_folder / "training.html").read_text()
    flags = ["--data", str(drawn_data), "--out", str(tmp_path)]
    model = str(run_folder / "model")
    assert main(["evaluate", "--model", model, "--against", model, *flags]) == 0
    assert capsys.readouterr().out.count(f"{model}: mask AP") == 2
    assert links(tmp_path / "index.html") == ["evaluation.html", "comparison.html"]
    text = (tmp_path / "evaluation.html").read_text()
    for fact in (model, str(drawn_data), "<b>split</b> val", "<b>written</b> 20"):
        assert fact in text


def test_models_that_can_use_other_images_are_not_compared(run_folder, tmp_path, capsys):
    data = make_tiny_coco(tmp_path / "data", images=1, val_images=2)
    path = data / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    document["images"][1] |= {"width": 300, "height": 200}
    path.write_text(json.dumps(document))
    large = data / "images" / document["images"][1]["file_name"]
    Image.open(large).resize((300, 200)).save(large)
    detector, card = load_model(run_folder / "model")
    images = replace(card.config.input, max_pixels=20_000)
    card = replace(card, config=replace(card.config, input=images))
    save_model(tmp_path / "model", detector, card)
    one, other = str(run_folder / "model"), str(tmp_path / "model")
    flags = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert main(["evaluate", "--model", one, "--against", other, *flags]) == 2
    assert "1 images of val can be used by only one of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_adds_to_the_run_that_the_model_is_in(run_folder, drawn_data, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("model", "metrics.jsonl"):
        (mine / name).symlink_to(run_folder / name)
    for source in (mine, mine / "model"):
        assert main(["evaluate", "--model", str(source), "--data", str(drawn_data)]) == 0
        assert links(mine / "index.html") == ["evaluation.html"]
        (mine / "evaluation.html").unlink()
        assert "mask_ap" in json.loads((mine / "evaluation.json").read_text())


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


@pytest.mark.parametrize(
    ("command", "out", "message"),
    [
        (["predict", "--model=m", "a.png"], "x.csv", "give a name that ends in .json"),
        (["predict", "--model=m", "a.png"], "folder", "exists and is no file"),
        (["predict", "--model=m", "a.png"], "taken/x.json", "is no folder that can be written to"),
        (["predict", "--model=m", "a.png"], "/dev/null", "exists and is no file"),
        (["visualize", "--model=m", "a.png"], "taken", "is a file; name a folder"),
        (["evaluate", "--model=m", "--data=d"], "taken", "is a file; name a folder"),
        (["train", "--data=d"], "taken/run", "is no folder that can be written to"),
        (["precompute", "--data=d"], "taken", "is a file; name a folder"),
        (["inspect", "d"], "taken", "is a file; name a folder"),
        (["import-original", "x.pth"], "taken", "is a file; name a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    command, out, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    (tmp_path / "folder").mkdir()
    assert exit_code_of([*command, "--out", out]) == 2
    assert message in capsys.readouterr().err


def exit_code_of(arguments):
    """Return it whether the parser or the command finds the mistake."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def test_a_model_replaces_a_model_and_nothing_else(run_folder, tmp_path):
    detector, card = load_model(run_folder / "model")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "notes.txt").write_text("keep")
    with pytest.raises(ModelFormatError, match="precious is there and is no model"):
        save_model(tmp_path / "precious", detector, card)
    with pytest.raises(ModelFormatError, match="is no model"):
        save_model(tmp_path / "precious" / "notes.txt", detector, card)
    assert (tmp_path / "precious" / "notes.txt").read_text() == "keep"
    for _ in range(2):
        save_model(tmp_path / "model", detector, card)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_cuda_that_is_not_there_is_named(
    command, run_folder, drawn_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    own = {
        "train": ["--data", str(drawn_data), "--out", str(tmp_path)],
        "evaluate": ["--data", str(drawn_data), "--model", str(run_folder / "model")],
        "predict": [
            *("--model", str(run_folder / "model"), "--out", str(tmp_path / "found.json")),
            str(drawn_data / "images"),
        ],
    }
    assert main([command, "--device", "cuda", *own[command]]) == 2
    assert "device cuda:0 does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--loader-workers", "-1"],
        ["--threads", "0"],
        ["--threads", "two"],
        ["--threads", "1_0"],
        ["--passes", "\u0661"],
    ],
    ids=["workers", "threads", "word", "underscore", "another-script"],
)
def test_a_number_that_cannot_work_is_refused_by_its_flag(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "d", "--out", "o", *flags])
    assert stop.value.code == 2
    assert f"argument {flags[0]}: {flags[1]!r} is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["-1", "1.5", "nan", "inf", "high"])
def test_a_score_that_no_instance_can_have_is_refused(score, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--model=m", "--out=x.json", f"--score={score}", "a.png"])
    assert stop.value.code == 2
    assert f"{score!r} is not a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "tiny", "--data", "nowhere", "--out", "x"], "nowhere"),
        (
            ["train", "--preset", "big", "--data", "d", "--out", "x"],
            "there are: auto, coco-r101-1x",
        ),
        (["evaluate", "--model", "nowhere", "--data", "d"], "nowhere is not a model folder"),
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
    settings = ["model.channels=32", "model.tower_depth=1", "optim.epochs=0.125"]
    changes = [flag for setting in settings for flag in ("--set", setting)]
    assert main(["train", *flags, *changes, "--images-per-process", "1"]) == 0
    optim = read_card(tmp_path / "model").config.optim
    assert (optim.batch_size, optim.lr_batch_size) == (1, 2)
    # One step: the warm-up of a third of no steps is none.
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["lr"] == pytest.approx(optim.lr / 2)


def test_a_bare_command_prints_help_with_first_steps(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "polarmask train --data data --out runs/first" in printed
    for command in ("serve", "pipeline", "settings", "import"):
        assert f"    {command} " in printed


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"polarmask {version('polarmask-k8s')}\n"


@pytest.mark.parametrize("name", ["tiny", "coco-r50-1x"])
def test_settings_have_value_and_meaning(name, capsys):
    assert main(["settings", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = [line.partition("=")[0] for line in lines if not line.startswith(" ")]
    assert len(settings) == len(set(settings)) > 40
    assert all(lines[lines.index(line) + 1].startswith("    ") for line in lines if line[0] != " ")
    assert f"optim.epochs={preset(name).optim.epochs:.1f}" in lines


def test_settings_of_data_are_those_that_fit_it(drawn_data, capsys):
    assert main(["settings", "--data", str(drawn_data)]) == 0
    fitting = capsys.readouterr().out
    assert main(["settings", "auto", "--data", str(drawn_data)]) == 0
    assert capsys.readouterr().out == fitting
    assert main(["settings"]) == 0
    assert capsys.readouterr().out != fitting


def test_a_mistyped_preset_gets_a_suggestion(capsys):
    assert main(["settings", "tinny"]) == 2
    assert "no preset 'tinny' (did you mean tiny?)" in capsys.readouterr().err


def test_quiet_prints_results_only_and_files_get_no_bars(drawn_data, tmp_path, capsys):
    flags = ["--preset", "tiny", "--data", str(drawn_data)]
    assert main(["precompute", *flags, "--out", str(tmp_path / "labels")]) == 0
    assert capsys.readouterr().err == ""
    small = [
        "--set",
        "model.channels=32",
        "--set",
        "epochs=1",
        "--labels",
        str(tmp_path / "labels"),
    ]
    try:
        assert main(["train", *flags, *small, "--out", str(tmp_path / "run"), "-q"]) == 0
        assert "step=" not in capsys.readouterr().err
    finally:
        logging.getLogger("polarmask").setLevel(logging.NOTSET)


def test_programs_of_other_areas_are_entry_points(capsys):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for name, usage in (("serve", "usage: polarmask serve"), ("pipeline", "usage: polarmask pipe")):
        module, _, function = declared["polarmask.programs"][name].partition(":")
        with pytest.raises(SystemExit) as stop:
            getattr(import_module(module), function)(["--help"], prog=f"polarmask {name}")
        assert stop.value.code == 0
        assert usage in capsys.readouterr().out


def test_help_of_serve_needs_no_torch():
    code = "from polarmask_serving.__main__ import serve; serve(['--help'], prog='p')"
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert "torch" not in imported
