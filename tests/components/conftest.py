"""Real git and DVC repositories, for tests of what steps stand on."""

import pytest

from data_repository import make_data_repository


@pytest.fixture(scope="session")
def data_repository(tmp_path_factory):
    """See `make_data_repository`."""
    return make_data_repository(tmp_path_factory.mktemp("a data repository"))


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    """A folder and a real S3 server, one after the other, as the place of a registry."""
    if request.param == "folder":
        return str(tmp_path / "a registry")
    request.getfixturevalue("s3_environment")
    return f"s3://polarmask/{tmp_path.name}/registry"
