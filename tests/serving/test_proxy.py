"""Envoy in front of a real TorchServe: what passes, what is refused, and with which message."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from certificates import certificate
from costly_requests import FORM_HEADERS, form_of_fields
from polarmask_serving.errors import ServerError
from polarmask_serving.proxy.config import Limits
from proxy_process import running_proxy

SMALL = Limits(body_bytes=100_000, upload_seconds=1.0, working=1, waiting=1)


def proxy_of(server, folder, **front):
    return running_proxy(folder, server.target, SMALL, **front)


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    with proxy_of(server, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


def error_of(answer):
    """Return status and code of a refusal, whose shape is always the same."""
    content = answer.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"code", "message"}
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, content["error"]["code"]


def test_an_image_gets_the_same_answer_as_from_torchserve_itself(proxy, server, png):
    through = requests.post(proxy.predict_url, data=png, timeout=60)
    direct = requests.post(server.predict_url, data=png, timeout=60)
    assert through.status_code == 200
    assert through.content == direct.content


def test_options_of_the_query_count(proxy, png):
    everything = requests.post(proxy.predict_url, data=png, timeout=60).json()
    one = requests.post(f"{proxy.predict_url}?max_instances=1&mask=none", data=png, timeout=60)
    assert len(everything["instances"]) > 1
    (found,) = one.json()["instances"]
    assert set(everything["instances"][0]) - set(found) == {"polygon"}


def test_what_curl_calls_a_form_by_itself_is_taken_as_the_image(proxy, png):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert requests.post(proxy.predict_url, data=png, headers=headers, timeout=60).ok


def test_a_form_holds_the_image_and_options(proxy, png):
    fields = {"score_threshold": "0.4", "max_instances": "2", "mask": "none"}
    files = {"image": ("a.png", png, "image/png")}
    by_field = requests.post(proxy.predict_url, data=fields, files=files, timeout=60)
    by_query = requests.post(proxy.predict_url, params=fields, data=png, timeout=60)
    assert by_field.ok
    assert by_field.content == by_query.content
    without = requests.post(proxy.predict_url, files={"mask": "rle"}, timeout=60)
    assert error_of(without) == (400, "empty_request")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        pytest.param("GET", "/", (404, "not_found"), id="nothing-there"),
        pytest.param("GET", "/ping", (404, "not_found"), id="health-of-torchserve"),
        pytest.param("POST", "/workflows?url=x", (404, "not_found"), id="registers-code"),
        pytest.param("POST", "/models?url=x.mar", (404, "not_found"), id="management"),
        pytest.param("OPTIONS", "/", (404, "not_found"), id="describes-itself"),
        pytest.param("POST", "/predictions/other", (404, "not_found"), id="another-model"),
        pytest.param("POST", "/predictions/polarmask/99", (404, "not_found"), id="no-version"),
        pytest.param("POST", "/predictions/../workflows", (404, "not_found"), id="path-climbs"),
        pytest.param("POST", "/predictions%2fpolarmask", (400, "bad_request"), id="escaped-slash"),
        pytest.param("GET", "/predictions/polarmask", (405, "method_not_allowed"), id="method"),
        pytest.param("POST", "/healthz", (405, "method_not_allowed"), id="method-of-health"),
        pytest.param("POST", "/predictions/polarmask?mas=x", (400, "bad_option"), id="unknown"),
        pytest.param("POST", "/predictions/polarmask?mask=%0a", (400, "bad_option"), id="newline"),
    ],
)
def test_all_else_is_refused_in_one_shape(proxy, method, path, expected):
    request = requests.Request(method, proxy.url).prepare()
    request.url = proxy.url + path  # as it is: requests would tidy it up
    with requests.Session() as session:
        answer = session.send(request, timeout=30)
    assert error_of(answer) == expected
    if expected[0] == 405:
        assert answer.headers["allow"] in {"GET, HEAD", "POST"}


def test_the_handlers_own_errors_pass_unchanged(proxy):
    assert error_of(requests.post(proxy.predict_url, data=b"no image", timeout=30)) == (
        *(415, "not_an_image"),
    )


def test_a_form_of_very_many_fields_is_refused_at_once(proxy):
    """Twice this much kept all of TorchServe, its health included, busy for a minute."""
    start = time.monotonic()
    body = form_of_fields(1_800)
    answer = requests.post(proxy.predict_url, data=body, headers=FORM_HEADERS, timeout=60)
    assert error_of(answer) == (400, "bad_form")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "in-chunks"])
def test_a_body_too_large_is_refused(proxy, declared):
    body = bytes(SMALL.body_bytes + 1)
    answer = requests.post(proxy.predict_url, data=body if declared else iter([body]), timeout=30)
    assert error_of(answer) == (413, "body_too_large")


def raw(proxy, sent):
    """Send bytes over a connection of their own; return all that comes back."""
    _, port = proxy.url.rsplit(":", 1)
    with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_slow_upload_is_cut_off(proxy):
    start = time.monotonic()
    head = b"POST /predictions/polarmask HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    answer = raw(proxy, head + b"slow")
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", id="two-lengths"),
        pytest.param("Content-Length: 4\r\nContent-Length: 5\r\n", id="lengths-differ"),
        pytest.param("Transfer-Encoding: xchunked\r\n", id="unknown-encoding"),
        pytest.param("Content-Length: +4\r\n", id="no-number"),
        pytest.param("Content-Length : 4\r\n", id="space-before-colon"),
        pytest.param("Content-Length: 4\r\nX-A: b\x00c\r\n", id="zero-byte"),
    ],
)
def test_what_two_servers_may_read_differently_is_refused(proxy, head):
    """The request behind it must not be taken as one of its own."""
    first = f"POST /predictions/polarmask HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode()
    answer = raw(proxy, first + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.split(b" ")[1] in {b"400", b"501"}
    assert answer.count(b"HTTP/1.1 ") == 1
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}


def test_a_request_to_a_full_queue_is_refused_at_once(proxy, png):
    def ask(_):
        start = time.monotonic()
        answer = requests.post(proxy.predict_url, data=png, timeout=60)
        return answer, time.monotonic() - start

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    refused = [(answer, seconds) for answer, seconds in answers if not answer.ok]
    assert {answer.status_code for answer, _ in answers} == {200, 503}
    assert {error_of(answer) for answer, _ in refused} == {(503, "overloaded")}
    assert {answer.headers["retry-after"] for answer, _ in refused} == {"1"}


def test_a_request_keeps_its_id_or_gets_one_and_both_are_logged(proxy, png):
    given = requests.post(
        proxy.predict_url, data=png, headers={"X-Request-Id": "mine-1"}, timeout=60
    )
    made = requests.get(f"{proxy.url}/nothing", timeout=30)
    assert given.headers["x-request-id"] == "mine-1"
    assert len(made.headers["x-request-id"]) == 36
    deadline = time.monotonic() + 20  # Envoy writes its log now and then
    while made.headers["x-request-id"] not in (log := proxy.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    lines = {line["request_id"]: line for line in map(json.loads, log.splitlines())}
    assert lines["mine-1"]["status"] == 200
    assert lines[made.headers["x-request-id"]]["path"] == "/nothing"


def test_health_names_the_version_that_answers(proxy, server):
    answer = requests.get(f"{proxy.url}/healthz", timeout=10)
    assert answer.json() == {"status": "ready", "version": server.version}


def test_tokens_are_asked_for_and_may_change_while_it_runs(server, png, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("first\nsecond\n")

    def ask(proxy, header):
        headers = {"Authorization": header} if header else {}
        return requests.post(proxy.predict_url, data=png, headers=headers, timeout=60)

    with proxy_of(server, tmp_path, tokens=tokens) as proxy:
        for header in ("", "Bearer", "Bearer fir", "Bearer firstx", "Basic first", "Bearer a b"):
            refused = ask(proxy, header)
            assert error_of(refused) == (401, "unauthorized")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        assert ask(proxy, "Bearer first").ok
        assert ask(proxy, "bearer second").ok
        assert requests.get(f"{proxy.url}/healthz", timeout=10).ok  # without a token

        tokens.write_text("third\n")
        time.sleep(2.1)
        assert ask(proxy, "Bearer third").ok
        assert error_of(ask(proxy, "Bearer first")) == (401, "unauthorized")
        tokens.unlink()
        time.sleep(2.1)
        assert error_of(ask(proxy, "Bearer third")) == (503, "authentication_unavailable")


def test_clients_show_a_certificate_where_an_authority_is_given(server, png, tmp_path):
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "tls", signed_by=authority)
    certificate(tmp_path, "client", signed_by=authority)
    with proxy_of(server, tmp_path, tls=tmp_path) as proxy:
        url = proxy.predict_url
        assert url.startswith("https://")
        verify = str(tmp_path / "ca.crt")
        known = (str(tmp_path / "client.crt"), str(tmp_path / "client.key"))
        assert requests.post(url, data=png, verify=verify, cert=known, timeout=60).ok
        with pytest.raises(requests.ConnectionError):
            requests.post(url, data=png, verify=verify, timeout=60)
        assert requests.get(f"{proxy.operations_url}/healthz", timeout=10).ok  # for the kubelet


def test_a_file_that_is_missing_is_named(server, tmp_path):
    with (
        pytest.raises(ServerError, match="one bearer token a line"),
        proxy_of(server, tmp_path, tokens=tmp_path / "none"),
    ):
        pass


@pytest.mark.parametrize(
    ("option", "entry", "expected_text"),
    [
        pytest.param("--tokens", "token", "tokens is missing", id="tokens"),
        pytest.param("--tls", "cert.pem", "tls.crt is missing", id="tls"),
    ],
)
def test_a_secret_with_other_entries_does_not_open_the_door(
    server, tmp_path, option, entry, expected_text
):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / entry).write_text("a")
    server.target.write(tmp_path)
    value = secret / "tokens" if option == "--tokens" else secret
    command = [sys.executable, "-m", "polarmask_serving.proxy.main", "--server", tmp_path]
    command += ["--scratch", tmp_path, option, value]
    environment = os.environ | {"POD_IP": "127.0.0.1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert expected_text in done.stderr


def test_an_origin_that_no_browser_sends_is_refused(server, tmp_path):
    server.target.write(tmp_path)
    command = [sys.executable, "-m", "polarmask_serving.proxy.main", "--server", tmp_path]
    environment = os.environ | {"POD_IP": "127.0.0.1", "CORS_ORIGINS": "https://a.example lab/"}
    command += ["--scratch", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "CORS_ORIGINS has 'lab/'" in done.stderr
