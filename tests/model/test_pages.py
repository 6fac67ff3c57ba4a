"""The index of a run, and the pages about trainings, comparisons and engines."""

import json
import re
from dataclasses import replace
from urllib.parse import unquote

import pytest

from factories import make_instances, make_tiny_coco, perfect_predictions
from polarmask.config.overrides import override, settings_of
from polarmask.config.presets import tiny
from polarmask.config.settings import to_dict
from polarmask.data.coco import load_coco
from polarmask.engines.ranking import EngineRanking, EngineResult
from polarmask.evaluation.evaluate import evaluate_predictions
from polarmask.report.comparison import Compared, changed_images, comparison_page
from polarmask.report.engines import engines_page
from polarmask.report.evaluation import evaluation_page
from polarmask.report.index import add_page, write_index
from polarmask.report.page import render
from polarmask.report.training import training_page
from polarmask.training.run_folder import RunData

REFRESH = '<meta http-equiv="refresh"'


def page(title, summary="in short"):
    return render(
        "no_champion.html", title=title, summary=summary, provenance={}, data=[], reason=""
    )


def links(path):
    return [unquote(link) for link in re.findall(r'href="([^"#]+)"', path.read_text())]


def test_the_index_links_what_is_there_in_the_usual_order(tmp_path):
    add_page(tmp_path, "evaluation.html", page("Evaluation", "mask AP 0.5 <of val>"))
    add_page(tmp_path, "data.html", page("Data"))
    assert links(tmp_path / "index.html") == ["data.html", "evaluation.html"]
    assert "mask AP 0.5 &lt;of val&gt;" in (tmp_path / "index.html").read_text()
    (tmp_path / "data.html").unlink()
    write_index(tmp_path)
    assert links(tmp_path / "index.html") == ["evaluation.html"]


def test_every_link_leads_somewhere_whatever_the_names(tmp_path):
    run = tmp_path / "it's 100% <b>#1"
    add_page(run, "training.html", page("Training"))
    add_page(run, "re ports & more/data.html", page("Data"))
    (run / "others.html").write_text("<title>not ours</title>")
    index = run / "index.html"
    assert "<b>#1" not in index.read_text()
    found = links(index)
    assert found == ["training.html", "re ports & more/data.html"]
    for name in found:
        [back] = links(run / name)
        assert (run / name).parent.joinpath(back).samefile(index)


def test_a_page_in_a_folder_of_a_run_is_in_the_index_of_the_run_too(tmp_path):
    add_page(tmp_path / "run" / "report", "evaluation.html", page("Evaluation"))
    assert not (tmp_path / "run" / "index.html").exists()  # it has none, so it gets none
    add_page(tmp_path / "run", "training.html", page("Training"))
    add_page(tmp_path / "run" / "report", "comparison.html", page("Comparison"))
    assert links(tmp_path / "run" / "index.html") == [
        *("training.html", "report/evaluation.html", "report/comparison.html"),
    ]


@pytest.fixture
def run(tmp_path):
    """A run folder of 30 of 40 steps, 5 s each, validated twice."""
    config = override(tiny(), ["optim.lr=0.01", "optim.epochs=4", "optim.batch_size=4"])
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    split = load_coco(make_tiny_coco(tmp_path / "data", images=1), "train").summary
    RunData(40, (split,)).write(tmp_path)
    steps = [
        {"step": step, "seconds": 5.0 * step, "loss": 1 / step, "class": 0.5 / step, "lr": 0.01}
        for step in range(1, 31)
    ]
    write_lines(tmp_path / "metrics.jsonl", steps)
    validated = [
        {"step": step, "mask_ap": ap, "mask_ap50": 2 * ap, "mask_ap75": float("nan")}
        for step, ap in ((10, 0.31), (20, 0.29))
    ]
    write_lines(tmp_path / "validation.jsonl", validated)
    return tmp_path


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_the_training_page_shows_the_run_as_it_stands(run):
    text = training_page(run)
    assert "30 of 40 steps, loss 0.033, best mask AP on val 0.310" in text
    for fact in ("<b>0.8</b>", "<b>2.5 min</b>", "50 s left", "after step 10", "5 s a step"):
        assert fact in text
    before = settings_of(tiny())
    for row in (
        ("optim.lr", before["optim.lr"], 0.01),
        ("optim.epochs", before["optim.epochs"], 4.0),
    ):
        cells = [f"<code>{row[0]}</code>", *row[1:]]
        assert "".join(f'<td class="text">{cell}</td>' for cell in cells) in text
    assert text.count("<svg") == 4
    assert REFRESH in text


def test_a_finished_run_is_not_loaded_again(run):
    with (run / "metrics.jsonl").open("a") as file:
        last = {"step": 40, "seconds": 200.0, "loss": 0.01, "class": 0.005, "lr": 0.0}
        file.write(json.dumps(last) + "\n")
    text = training_page(run)
    assert "finished" in text
    assert REFRESH not in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl", "data.json"])
def test_a_run_without_one_of_its_files_has_a_page(run, name):
    (run / name).unlink()
    assert training_page(run).startswith("<!doctype html>")


def test_a_long_run_has_a_small_page(run):
    entries = [
        {"step": step, "seconds": step / 10, "loss": 1.0, "ray": 0.5, "lr": 1e-4}
        for step in range(1, 20_001)
    ]
    write_lines(run / "metrics.jsonl", entries)
    assert len(training_page(run)) < 100_000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_coco(make_tiny_coco(tmp_path_factory.mktemp("drawn"), val_images=4), "val")


def test_the_comparison_page_shows_what_got_better_and_worse(data):
    candidate, champion = perfect_predictions(data), perfect_predictions(data)
    first, second = data.images[:2]
    none = make_instances((first.height, first.width), [])
    candidate[first.id], champion[second.id] = none, none
    new, old = (evaluate_predictions(data, found) for found in (candidate, champion))
    assert changed_images(new, old) == ([second.id], [first.id])
    text = comparison_page(
        Compared("new <1>", new, candidate), Compared("old", old, champion), data, provenance={}
    )
    assert "Candidate: new &lt;1&gt;. Champion: old." in text
    assert f"{new.mask_ap - old.mask_ap:+.3f} from {old.mask_ap:.3f}" in text
    assert text.count("<img") == 4
    worse, better = text.split("Images that got worse")[1].split("Images that got better")
    assert first.file_name in worse
    assert second.file_name in better
    assert len(text) < 2_000_000


def test_both_pages_show_the_f1_at_the_threshold_itself(data):
    """The curve has steps of .01, and the best threshold lies between two of them."""
    found = perfect_predictions(data)
    found[data.images[0].id] = make_instances((96, 128), [])
    result = evaluate_predictions(data, found)
    result = replace(result, thresholds=0.9 * result.thresholds)
    shown = f"<b>{result.best_f1:.3f}</b>"
    assert 0.5 < result.best_f1 < 1
    one = Compared("one", result, found)
    assert shown in comparison_page(one, one, data, provenance={})
    assert shown in evaluation_page(result, data, found, provenance={})


def test_the_engines_page_has_every_engine_and_why():
    engines = (
        EngineResult(name="eager", admitted=True, reason="equal", milliseconds=9.5, mask_ap=0.4),
        EngineResult(name="int8", admitted=False, reason="no <file>"),
    )
    ranking = EngineRanking(
        weights_sha256="0",
        device="cpu",
        cpu="a CPU",
        canvas_hw=(96, 128),
        images="",
        engines=engines,
    )
    text = engines_page(ranking, provenance={})
    assert "128 x 96" in text
    assert "9.5 ms an image" in text
    assert "no &lt;file&gt;" in text
    nothing = engines_page(replace(ranking, engines=engines[1:]), provenance={})
    assert "no engine is admitted" in nothing
