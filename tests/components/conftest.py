"""Real git and DVC repositories, for tests of what steps stand on."""

import pytest

from data_repository import make_data_repository


@pytest.fixture(scope="session")
def data_repository(tmp_path_factory):
    """See `make_data_repository`."""
    return make_data_repository(tmp_path_factory.mktemp("a data repository"))
