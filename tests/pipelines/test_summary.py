"""What a run leaves in its folder is its own, also where another run was before."""

from types import SimpleNamespace

from polarmask_pipelines.local_runner import TaskResult
from polarmask_pipelines.summary import summarize

PAGE = '<!doctype html><title>{}</title><meta name="summary" content="">'


def test_pages_of_an_earlier_run_in_the_same_folder_go(tmp_path):
    def result(step):
        page = tmp_path / f"{step}.html"
        page.write_text(PAGE.format(step))
        return TaskResult(step, "succeeded", 1.0, {"page": SimpleNamespace(path=str(page))})

    out = tmp_path / "out"
    names = {"ingest-coco", "measure-engines"}
    summarize([result("ingest-coco"), result("measure-engines")], names, seconds=2, out=out)
    pages = out / "reports"
    assert {page.name for page in pages.iterdir()} == {"data.html", "engines.html"}
    summarize([result("ingest-coco")], names, seconds=1, out=out)
    assert {page.name for page in pages.iterdir()} == {"data.html"}
    assert "engines.html" not in (out / "index.html").read_text()
