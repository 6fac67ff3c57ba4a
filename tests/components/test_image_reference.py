import pytest

from polarmask_components.checks.image_reference import problem_of_image


@pytest.mark.parametrize(
    "reference",
    [
        "polarmask-trainer:0.1.0-python3.11",
        "example.org/team/polarmask_trainer:v1",
        "example.org:5000/polarmask:1",
        "localhost/polarmask@sha256:" + "a" * 64,
        "polarmask:1@sha256:" + "0" * 64,
    ],
)
def test_name_of_one_version_is_fine(reference):
    assert problem_of_image(reference) == ""


@pytest.mark.parametrize(
    ("reference", "expected_text"),
    [
        ("polarmask", "names no version"),
        ("example.org:5000/polarmask", "names no version"),
        ("polarmask:latest", "names no version"),
        ("", "no image name"),
        ("Polarmask:1", "no image name"),
        ("https://example.org/polarmask:1", "no image name"),
        ("polarmask:1 ", "no image name"),
        ("polarmask@sha256:abc", "no image name"),
        ("polarmask:", "no image name"),
    ],
)
def test_other_names_are_reported(reference, expected_text):
    assert expected_text in problem_of_image(reference)
