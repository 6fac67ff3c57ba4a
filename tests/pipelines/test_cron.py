import pytest

from kube.kfp_rules import check_cron
from polarmask_pipelines.cron import with_seconds
from polarmask_pipelines.errors import CronError


@pytest.mark.parametrize(
    "five",
    [
        "* * * * *",
        "0 2 * * *",
        "*/15 9-17 * * 1-5",
        "5,35 */6 1,15 jan-mar MON",
        "0 0 29 2 *",
        "0 0 30 2 0",  # also on Sundays
        "0 0 30 2 0-6",  # every day of February
        "0 0 */31 2 *",
        "30 1 1/7 * *",
    ],
)
def test_five_fields_become_six_that_kubeflow_reads(five):
    six = with_seconds(five)
    assert six == f"0 {five}"
    check_cron(six)


def test_spaces_do_not_matter():
    assert with_seconds("  0  2 * *  * ") == "0 0 2 * * *"


@pytest.mark.parametrize(
    ("expression", "expected_text"),
    [
        pytest.param("0 0 2 * * *", "has 6 fields; write five", id="kubeflow's-own-form"),
        pytest.param("0 2 * *", "has 4 fields", id="one-is-missing"),
        pytest.param("@daily", "has 1 fields", id="a-word"),
        pytest.param("", "has 0 fields", id="nothing"),
        pytest.param("60 2 * * *", "minute is '60'; it goes from 0 to 59", id="minute-60"),
        pytest.param("0 24 * * *", "hour is '24'", id="hour-24"),
        pytest.param("0 2 0 * *", "day of month is '0'", id="day-0"),
        pytest.param("0 2 * 13 *", "from 1 to 12 or JAN to DEC", id="month-13"),
        pytest.param("0 2 * * 7", "from 0 to 6 or SUN to SAT", id="sunday-as-7"),
        pytest.param("0 17-9 * * *", "'17-9' is an empty range", id="backwards"),
        pytest.param("*/0 * * * *", "is an empty range", id="step-0"),
        pytest.param("-5 * * * *", "can't be read", id="negative"),
        pytest.param("0 2 L * *", "day of month is 'L'", id="last-day"),
        pytest.param("0 2 ? * *", "can't be read", id="question-mark"),
        pytest.param("0 2 * * 1#2", "can't be read", id="second-monday"),
        pytest.param("1,,2 * * * *", "can't be read", id="empty-part"),
        pytest.param("0 0 30 2 *", "no day of the next five years", id="30-february"),
        pytest.param("0 0 31 4,6,9,11 *", "no day of the next", id="31-of-short-months"),
        pytest.param("0 0 30 2 */2", "no day of the next", id="a-weekday-too-not-or"),
        pytest.param("0 0 31 2 1,*", "no day of the next", id="a-star-in-a-list"),
        pytest.param("\u0663 2 * * *", "can't be read", id="arabic-digit"),
        pytest.param("0 \uff12 * * *", "can't be read", id="wide-digit"),
        pytest.param("*/\u0665 * * * *", "can't be read", id="arabic-step"),
        pytest.param("0 2 * * \u017fun", "can't be read", id="long-s"),
    ],
)
def test_schedule_that_kubeflow_would_misread_is_refused(expression, expected_text):
    with pytest.raises(CronError) as caught:
        with_seconds(expression)
    assert expected_text in str(caught.value)
