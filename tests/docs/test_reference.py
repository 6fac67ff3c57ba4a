"""Reference pages are what the code generates."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generated():
    return runpy.run_path(str(DOCS / "generate.py"))["pages"]()


@pytest.mark.parametrize("name", ["config.md", "cli.md", "pipeline-parameters.md", "metrics.md"])
def test_committed_page_is_what_the_code_generates(generated, name):
    assert (DOCS / "reference" / name).read_text() == generated[name], "run `make reference`"


def test_every_generated_page_is_compared(generated):
    assert sorted(generated) == ["cli.md", "config.md", "metrics.md", "pipeline-parameters.md"]
