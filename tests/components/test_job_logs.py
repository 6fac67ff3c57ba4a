"""Each line of the first pod's log is printed once, whatever the nodes' clocks say."""

import time

import pytest

from kube.faults import Fault
from kube.server import KubeServer
from polarmask_components.cluster.connection import connect
from polarmask_components.training import job_logs
from polarmask_components.training.job_logs import JobLog
from polarmask_components.training.pytorchjob import first_pod_of
from training_jobs import training_job

JOB = training_job(name="a-job", namespace="ml")
POD = "a-job-master-0"
LABELS = dict(each.split("=") for each in first_pod_of(JOB).split(","))
SPEC = {"containers": [{"name": "pytorch", "image": "trainer:1"}]}
SUMMER = ["2026-10-25T02:59:59.1+02:00", "2026-10-25T02:59:59.12+02:00"]
WINTER = ["2026-10-25T02:00:00+01:00", "2026-10-25T02:00:00.000000001+01:00"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(job_logs, "_SECONDS_BETWEEN_TRIES", 0.02)
    with KubeServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.write_kubeconfig(tmp_path / "kubeconfig")))
        yield running


def start_pod(server):
    pod = server.create("Pod", {"metadata": {"name": POD, "labels": LABELS}, "spec": SPEC})
    return server.logs.start(pod, "pytorch")


def printed_after(capfd, number):
    """Wait for a number of lines; return them."""
    lines, give_up = [], time.monotonic() + 20
    while len(lines) < number:
        assert time.monotonic() < give_up, lines
        time.sleep(0.02)
        lines += capfd.readouterr().out.splitlines()
    return lines


@pytest.mark.parametrize(
    "stamps",
    [
        pytest.param([*SUMMER, *WINTER], id="end-of-summer-time"),
        pytest.param(["2026-01-01T00:00:00.5Z"] * 4, id="a-coarse-clock"),
        pytest.param([f"2026-01-01T00:00:0{9 - second}Z" for second in range(4)], id="set-back"),
    ],
)
@pytest.mark.parametrize("cut_after", [1, 3])
def test_lines_are_printed_once_over_a_lost_connection(server, capfd, stamps, cut_after):
    run = start_pod(server)
    for number, stamp in enumerate(stamps):
        server.logs.write(run, f"line {number}\n", stamp)
    server.faults.add(Fault("GET .*/log", cut_after=cut_after, times=2))
    with JobLog(connect(), JOB):
        first = printed_after(capfd, len(stamps))
        server.logs.write(run, "the same\n", stamps[-1])
        server.logs.write(run, "the same\n", stamps[-1])
        server.logs.write(run, "the end", stamps[-1])  # without a newline
        server.logs.finish(run)
        last = printed_after(capfd, 3)
    assert first + last == [
        *(f"line {n}" for n in range(len(stamps))),
        *["the same"] * 2,
        "the end",
    ]
    assert capfd.readouterr().out == ""


def test_a_pod_on_a_node_whose_clock_is_behind_loses_no_line(server, capfd):
    run = start_pod(server)
    server.logs.write(run, "first\n", "2026-01-01T12:00:00Z")
    with JobLog(connect(), JOB):
        assert printed_after(capfd, 1) == ["first"]
        server.delete("Pod", POD, grace=0)
        server.logs.finish(run)
        run = start_pod(server)
        server.logs.write(run, "second\n", "2026-01-01T11:00:00Z")
        assert printed_after(capfd, 1) == ["second"]
        server.logs.finish(run)


def test_words_without_a_time_are_printed_whole(server, capfd):
    run = start_pod(server)
    server.logs.write(run, "unable to retrieve container logs\n", "failed:")
    with JobLog(connect(), JOB):
        assert printed_after(capfd, 1) == ["failed: unable to retrieve container logs"]
        server.logs.finish(run)
