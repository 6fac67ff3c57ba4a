"""A real Envoy that lets a candidate have some of the requests; the models are scripted servers."""

import json
import os
import time
from contextlib import ExitStack
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests

from polarmask_serving.answer.options import TRIAL_HEADER
from polarmask_serving.proxy.config import Trial
from polarmask_serving.proxy.trial import entries
from polarmask_serving.torchserve.probe import Target
from proxy_process import running_proxy
from scripted_server import FOUND, ScriptedServer

STABLE = FOUND
CANDIDATE = FOUND | {"model": {"name": "polarmask", "version": "2"}}
BODY = os.urandom(600_000)  # more than a connection's buffer


class Mounted:
    """A ConfigMap as the kubelet mounts it: a symlink that is replaced."""

    def __init__(self, folder):
        self.folder = folder
        self._number = 0

    def set(self, *, copies=0, share=0):
        self._number += 1
        made = self.folder / f"..{self._number}"
        made.mkdir()
        for name, value in entries(copies=copies, share=share).items():
            (made / name).write_text(value)
        (self.folder / "..new").symlink_to(made.name)
        (self.folder / "..new").rename(self.folder / "..data")


@pytest.fixture
def front(tmp_path):
    """Two scripted servers and the proxy between; `ask` returns the answer's version."""
    with ExitStack() as stack:
        of_candidate = stack.enter_context(ExitStack())
        stable = stack.enter_context(ScriptedServer().running())
        candidate = of_candidate.enter_context(ScriptedServer().running())
        ports = [urlsplit(each.url).port for each in (stable, candidate)]
        traffic = Mounted(tmp_path / "traffic")
        traffic.folder.mkdir()
        (tmp_path / "proxy").mkdir()
        kinds = ("inference_port", "management_port", "metrics_port")
        target = Target(
            ports=dict.fromkeys(kinds, ports[0]), name="polarmask", version="1", workers=1
        )
        proxy = stack.enter_context(
            running_proxy(
                tmp_path / "proxy",
                target,
                until=(200, 503),  # the scripted servers have no health
                trial=Trial(host="localhost", port=ports[1], traffic=traffic.folder),
            )
        )

        def ask(body=BODY, **headers):
            url = f"{proxy.url}/predictions/polarmask"
            return requests.post(url, data=body, headers=headers, timeout=30)

        yield SimpleNamespace(
            stable=stable, candidate=candidate, traffic=traffic, ask=ask, end=of_candidate.close
        )


def script(server, answer, times=100):
    server.script = [answer] * times


def eventually(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def low(headers):
    return {name.lower(): value for name, value in headers.items()}


def test_without_entries_the_candidate_hears_nothing(front):
    assert {front.ask().status_code for _ in range(20)} == {200}
    front.traffic.set()
    time.sleep(0.5)
    assert {front.ask().status_code for _ in range(20)} == {200}
    assert len(front.stable.seen) == 40
    assert front.candidate.seen == []


def test_copies_carry_the_same_id_and_a_mark_that_clients_cannot_set(front):
    first = front.ask(**{TRIAL_HEADER: "mine", "X-Request-Id": "a"})
    assert first.ok
    assert TRIAL_HEADER not in low(front.stable.seen[0][1])
    front.traffic.set(copies=1)
    eventually(lambda: front.ask().ok and front.candidate.seen)
    front.stable.seen.clear()
    front.candidate.seen.clear()
    script(front.candidate, (500, {}, b"broken"))
    answers = [front.ask(**{"X-Request-Id": f"id-{number}"}) for number in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    eventually(lambda: len(front.candidate.seen) == 10)
    for seen in (front.stable.seen, front.candidate.seen):
        assert {low(each)["x-request-id"] for _, each in seen} == {f"id-{n}" for n in range(10)}
        assert all(TRIAL_HEADER in low(each) for _, each in seen)
        assert all(low(each)["content-length"] == str(len(BODY)) for _, each in seen)
    front.traffic.set()
    time.sleep(0.5)
    received = len(front.candidate.seen)
    front.ask()
    assert len(front.candidate.seen) == received


@pytest.mark.parametrize("fault", [(500, {}, b"broken"), (503, {}, b"busy"), "reset", "down"])
def test_who_is_handed_to_a_failing_candidate_is_answered_by_the_stable_version(front, fault):
    front.traffic.set(share=1)
    script(front.candidate, (200, {}, CANDIDATE))
    eventually(lambda: front.ask().json() == CANDIDATE)
    if fault == "down":
        script(front.candidate, "reset", 1)  # the connection that is open
        front.end()
    else:
        script(front.candidate, fault)
    assert [front.ask().json() for _ in range(10)] == [STABLE] * 10


def test_a_share_is_about_what_was_asked_for(front):
    front.traffic.set(share=0.3)
    script(front.candidate, (200, {}, CANDIDATE), 1000)
    eventually(lambda: front.ask().json() == CANDIDATE)
    answered = [json.loads(front.ask(b"small").content) for _ in range(300)]
    assert 55 < sum(each == CANDIDATE for each in answered) < 125  # 90, five deviations aside
