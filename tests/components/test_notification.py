"""Webhooks, whose addresses are secrets, and tokens in URLs."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from polarmask.errors import ConfigError
from polarmask.system.redaction import redact
from polarmask_components import notification
from polarmask_components.errors import NotARepositoryError
from polarmask_components.notification import check_webhook, post
from polarmask_pipelines.errors import KubeflowError

SECRET = "services/T000/B000/s3cr3t"


@pytest.fixture
def chat():
    """A webhook that gives these answers in turn; the times of its requests."""
    answers, times = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            times.append(time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{SECRET}", answers, times
        server.shutdown()


@pytest.mark.parametrize("answers", [[200], [404], [429, 200]])
def test_the_address_of_a_webhook_is_in_no_log(chat, caplog, answers):
    address, left, _ = chat
    left += answers
    shown = post(address, {"text": "done"})
    assert SECRET not in shown + caplog.text
    assert "http://127.0.0.1:" in shown
    assert ("404 Not Found" in shown) is (404 in answers)


def test_a_webhook_that_cannot_be_reached_is_not_named_in_full(monkeypatch):
    monkeypatch.setattr(notification, "_DEADLINE_SECONDS", 0)
    shown = post(f"http://127.0.0.1:9/{SECRET}", {"text": "done"})
    assert SECRET not in shown
    assert "could not notify http://127.0.0.1:9/***" in shown
    assert "Connection refused" in shown


def test_a_busy_webhook_is_asked_again_after_a_pause_and_a_refusal_is_final(chat):
    address, answers, times = chat
    answers += [503, 429, 200]
    assert post(address, {"text": "done"}).startswith("notified")
    assert times[1] - times[0] > 0.2
    assert times[2] - times[1] > times[1] - times[0]
    answers += [400, 200]
    assert "400" in post(address, {"text": "done"})
    assert answers == [200]


def test_a_wrong_webhook_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        check_webhook(f"hooks.example/{SECRET}")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("clone https://ghp_abc@git.example/x.git", "clone https://***@git.example/x.git"),
        ("'https://me:p@ss:w@git.example:8443/x'", "'https://***@git.example:8443/x'"),
        ("https://g.example/x.git?private_token=abc&a=1", "https://g.example/x.git?private_token=***&a=1"),
        ("https://b.example/a.mar?se=1&sig=abc&auth=x", "https://b.example/a.mar?se=1&sig=***&auth=***"),
        ("git@git.example:team/x.git failed", "git@git.example:team/x.git failed"),
        ("s3://bucket/a@b and me@example.org", "s3://bucket/a@b and me@example.org"),
    ],
)  # fmt: skip
def test_tokens_in_urls_are_hidden_and_the_rest_stays(text, shown):
    assert redact(text) == shown
    assert str(NotARepositoryError(text)) == shown
    assert str(KubeflowError(text)) == shown
