"""`import polarmask` is quick, and every name that it offers is there."""

import subprocess
import sys

import pytest

import polarmask


@pytest.mark.parametrize("name", polarmask.__all__)
def test_every_public_name_resolves(name):
    assert getattr(polarmask, name) is not None


def test_names_are_those_of_the_lazy_table():
    assert set(polarmask.__all__) == set(polarmask._MODULE_OF)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        polarmask.absent  # noqa: B018


@pytest.mark.parametrize(
    "code", ["import polarmask", "from polarmask.cli import main; main(['presets'])"]
)
def test_torch_is_not_imported_before_it_is_used(code):
    code += "; import sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
