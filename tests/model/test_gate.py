import sys
from subprocess import run

import pytest

from polarmask.evaluation.gate import decide


@pytest.mark.parametrize(
    ("candidate_ap", "floor_ap", "champion_ap", "passed"),
    [
        pytest.param(0.30, 0.25, 0.30, True, id="tie-passes"),
        pytest.param(0.31, 0.25, 0.30, True, id="better-passes"),
        pytest.param(0.29, 0.25, 0.30, False, id="worse-than-champion-stops"),
        pytest.param(0.25, 0.25, None, True, id="floor-itself-passes"),
        pytest.param(0.24, 0.25, None, False, id="below-floor-stops-without-champion"),
        pytest.param(0.24, 0.25, 0.10, False, id="below-floor-stops-though-better-than-champion"),
        pytest.param(0.0, 0.0, None, True, id="zero-floor-lets-anything-in"),
        pytest.param(0.0, 0.0, 0.0, True, id="champion-with-zero-is-a-champion"),
        pytest.param(float("nan"), 0.0, None, False, id="nan-never-passes"),
        pytest.param(0.30, 0.25, float("nan"), True, id="champion-without-a-number-does-not-block"),
    ],
)
def test_verdict(candidate_ap, floor_ap, champion_ap, passed):
    assert decide(candidate_ap, floor_ap=floor_ap, champion_ap=champion_ap).passed is passed


def test_reason_shows_the_difference_of_a_close_race():
    reason = decide(0.4015, floor_ap=0.25, champion_ap=0.4019).reason
    assert reason == "mask AP 0.4015 is below the champion's 0.4019"


def test_gate_imports_no_torch():
    code = "import sys, polarmask.evaluation.gate; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
