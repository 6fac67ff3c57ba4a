"""What is read of two logs, how answers are compared, and when a candidate may take over."""

import json
from dataclasses import replace

import pytest

from polarmask.errors import ConfigError
from polarmask_components.deploy.trial.figures import (
    Figures,
    Requests,
    Side,
    decide_trial,
    figures_of,
    match,
)
from polarmask_components.deploy.trial.settings import TrialSettings, read_trial_settings

SIDE = Side(requests=100, errors=0, instances=3.0, p50=0.1, p95=0.2)
GOOD = Figures(compared=100, unanswered=0, agreement=0.9, mean_iou=0.8, candidate=SIDE, stable=SIDE)
COPIES = TrialSettings(copies=0.1)


def line(name, *, status=200, found=None, seconds=0.1):
    request = {"request_id": name, "status": status, "seconds": {"network": seconds}}
    request["images"] = [{"instances": len(found or [])}]
    if found is not None:
        request["found"] = [found]
    return json.dumps({"time": "now", "request": request})


def read(*lines):
    requests = Requests()
    requests.read(lines)
    return requests.by_id


def test_lines_that_come_twice_count_once_and_ids_of_several_requests_not_at_all():
    first, other = line("a", found=[]), line("b", found=[])
    assert set(read(first, first, "no JSON", '{"request": 3}', other)) == {"a", "b"}
    assert set(read(first, line("a", found=[], seconds=3), other)) == {"b"}


def test_instances_have_one_partner_of_their_category_with_an_iou_of_a_half():
    one = [[1, 0.9, 0, 0, 10, 10], [1, 0.8, 100, 0, 10, 10], [2, 0.7, 50, 50, 4, 4]]
    other = [[1, 0.9, 0, 0, 10, 8], [1, 0.9, 0, 0, 10, 9], [1, 0.9, 50, 50, 4, 4]]
    assert match(one, other) == [0.9]
    assert match(one, one) == [1.0, 1.0, 1.0]
    assert match([[1, 0.9, 0, 0, 0, 0]], [[1, 0.9, 0, 0, 0, 0]]) == []


def test_copies_are_joined_by_id():
    box, far = [1, 0.9, 0, 0, 10, 10], [1, 0.9, 90, 0, 10, 10]
    stable = read(
        line("same", found=[box]),
        line("differs", found=[box]),
        line("missing", found=[box]),
        line("on-its-way", found=[box]),
        line("not-copied"),
    )
    candidate = read(line("same", found=[box]), line("differs", found=[far, box]), line("other"))
    figures = figures_of(stable, candidate, due=["missing", "same", "not-copied"], copies=True)
    assert (figures.compared, figures.unanswered) == (2, 1)
    assert figures.agreement == pytest.approx(2 * 2 / (2 + 3))
    assert figures.mean_iou == 1.0


def test_of_a_share_each_side_is_judged_by_its_own_requests():
    stable = read(line("a"), line("b"), line("failed-there"))
    candidate = read(line("c", seconds=0.3), line("failed-there", status=500))
    figures = figures_of(stable, candidate, due=[], copies=False)
    assert figures.agreement is None
    assert (figures.candidate.requests, figures.candidate.errors) == (2, 1)
    assert (figures.stable.requests, figures.candidate.p95) == (2, 0.3)


@pytest.mark.parametrize(
    ("figures", "passes", "expected_text"),
    [
        pytest.param(GOOD, True, "0.900 of the instances agree", id="good"),
        pytest.param(replace(GOOD, agreement=0.69), False, "agrees too little", id="differs"),
        pytest.param(replace(GOOD, agreement=None), True, "100 requests", id="of-a-share"),
        pytest.param(replace(GOOD, unanswered=2), False, "failed at 2 of 102", id="unanswered"),
        pytest.param(
            replace(GOOD, candidate=replace(SIDE, errors=2)), False, "failed at 2", id="errors"
        ),
        pytest.param(
            replace(GOOD, candidate=replace(SIDE, p95=0.31)), False, "too slow", id="slow"
        ),
        pytest.param(replace(GOOD, compared=29), False, "only 29 requests", id="too-few"),
    ],
)
def test_the_verdict(figures, passes, expected_text):
    verdict = decide_trial(figures, COPIES)
    assert verdict.passed == passes
    assert expected_text in verdict.reason


def test_few_requests_end_no_trial_early_and_clear_failure_does():
    assert decide_trial(replace(GOOD, compared=3, agreement=0.0), COPIES, over=False).passed
    assert not decide_trial(replace(GOOD, agreement=0.0), COPIES, over=False).passed


def test_settings_come_as_kubeflow_gives_them():
    assert read_trial_settings({}) is None
    settings = read_trial_settings({"share": 0.05, "min_requests": 50.0})
    assert settings == TrialSettings(share=0.05, min_requests=50)


@pytest.mark.parametrize(
    ("plain", "expected_text"),
    [
        ({"copies": 1, "share": 1}, "copies or share"),
        ({"minutes": 3}, "copies or share"),
        ({"copies": 1.5}, r"copies is 1.5"),
        ({"copies": "many"}, "deploy_trial.copies"),
        ({"copies": 1, "minutes": 0}, "minutes"),
        ({"shadow": 1}, "shadow is not a setting; there are: copies, max_errors"),
    ],
)
def test_settings_that_cannot_work_are_named(plain, expected_text):
    with pytest.raises(ConfigError, match=expected_text):
        read_trial_settings(plain)
