import pytest

from polarmask_pipelines import parameters
from polarmask_pipelines.errors import ParameterError
from polarmask_pipelines.parameters import Parameter, read_parameters

TYPES = {"text": str, "number": int, "ratio": float, "only_if": bool, "job": dict}


@pytest.fixture(autouse=True)
def pipeline_of_all_types(monkeypatch):
    known = {name: Parameter(name, kind, None, "") for name, kind in TYPES.items()}
    monkeypatch.setattr(parameters, "pipeline_parameters", lambda: known)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("text=a=b c", "a=b c"),
        ("text=", ""),
        ("number=-3", -3),
        ("ratio=1e-3", 0.001),
        ("only_if=true", True),
        ("only_if=false", False),
        ('job={"gpu": {"count": 8}}', {"gpu": {"count": 8}}),
    ],
)
def test_value_has_the_type_in_the_signature(assignment, value):
    name = assignment.partition("=")[0]
    assert read_parameters([assignment]) == {name: value}


def test_last_of_two_values_is_used():
    assert read_parameters(["number=1", "number=2"]) == {"number": 2}


@pytest.mark.parametrize(
    ("assignment", "expected_text"),
    [
        ("nummer=1", "names: text, number, ratio, only_if, job"),
        ("number", "write NAME=VALUE"),
        ("number=1.5", "not of type int"),
        ("ratio=nan", "not of type float"),
        ("only_if=True", "write true or false"),
        ("job=[1]", "write a JSON object"),
        ("job={", "write a JSON object"),
        ('job={"deadline_hours": NaN}', "write a JSON object"),
        ('job={"deadline_hours": -Infinity}', "write a JSON object"),
        ("ratio=\u0660.\u0665", "not of type float"),
        ("number=\u0663", "not of type int"),
    ],
)
def test_wrong_assignment_is_reported(assignment, expected_text):
    with pytest.raises(ParameterError) as caught:
        read_parameters([assignment])
    assert expected_text in str(caught.value)
