"""What the proxy refuses or bears before a model hears of it; the model is a scripted server."""

import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from certificates import certificate
from costly_requests import silent_connections
from polarmask_serving.proxy import config
from polarmask_serving.torchserve.probe import Target
from proxy_process import running_proxy
from scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def model():
    with ScriptedServer().running() as server:
        yield server


@pytest.fixture
def start_proxy(model, tmp_path):
    port = urlsplit(model.url).port
    ports = dict.fromkeys(("inference_port", "management_port", "metrics_port"), port)
    (tmp_path / "proxy").mkdir()

    def start(name="polarmask", **front):
        model.seen.clear()
        target = Target(ports=ports, name=name, version="1", workers=1)
        return running_proxy(tmp_path / "proxy", target, **front)

    return start


def code_of(answer):
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()["error"]["code"]


def ask(proxy, *, body=b"image", **headers):
    url = proxy.predict_url
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(url, data=body, headers=named, timeout=30)


def port_of(url):
    return urlsplit(url).port


def raw(proxy, sent):
    """Send bytes over a connection of their own; return all that comes back."""
    with socket.create_connection(("127.0.0.1", port_of(proxy.url)), timeout=30) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# Guards fail closed


def test_who_has_a_token_is_refused_while_the_tokens_can_not_be_read(start_proxy, model, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")

    def eventually(expected):
        """Ask until the file counts as it is now; in between, only a refusal may come."""
        deadline = time.monotonic() + 10
        while (answer := ask(proxy, Authorization="Bearer secret")).status_code != expected:
            assert time.monotonic() < deadline
        return answer

    with start_proxy(tokens=tokens) as proxy:
        assert eventually(200)
        for broken in (None, Path.mkdir, "", "\n \n"):  # a folder can be opened and not be read
            tokens.unlink()
            if callable(broken):
                broken(tokens)
            elif broken is not None:
                tokens.write_text(broken)
            refused = eventually(503)
            assert code_of(refused) == (503, "authentication_unavailable")
            assert refused.headers["retry-after"] == "5"
            model.seen.clear()
            for header in ("Bearer secret", "Bearer", ""):
                assert ask(proxy, Authorization=header).status_code == 503
            assert model.seen == []
            if callable(broken):
                tokens.rmdir()
            tokens.write_text("secret\n")
            eventually(200)
        assert code_of(ask(proxy, Authorization="Bearer other")) == (401, "unauthorized")


@pytest.mark.parametrize("failing", ["current_tokens", "is_authorized", "decode", "take_options"])
def test_an_error_of_the_script_lets_nobody_through(
    start_proxy, model, tmp_path, monkeypatch, failing
):
    lines = config.SCRIPT.read_text().splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith(f"local function {failing}("))
    lines[at] += " error('broken')"
    broken = tmp_path / "broken.lua"
    broken.write_text("\n".join(lines))
    monkeypatch.setattr(config, "SCRIPT", broken)
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    headers = {"Authorization": "Bearer secret"}
    with start_proxy(tokens=tokens) as proxy:
        url = f"{proxy.predict_url}?mask=none"
        answer = requests.post(url, data=b"image", headers=headers, timeout=30)
    assert code_of(answer) == (503, "authentication_unavailable")
    assert model.seen == []


def test_an_authority_that_is_emptied_lets_no_unknown_certificate_in(start_proxy, model, tmp_path):
    tls = tmp_path / "tls"
    tls.mkdir()
    authority = certificate(tls, "ca")
    certificate(tls, "tls", signed_by=authority)
    certificate(tmp_path, "client", signed_by=authority)
    certificate(tmp_path, "other")
    known, unknown = (
        (str(tmp_path / f"{name}.crt"), str(tmp_path / f"{name}.key"))
        for name in ("client", "other")
    )
    trusted = str(tmp_path / "trusted.crt")
    (tmp_path / "trusted.crt").write_bytes((tls / "ca.crt").read_bytes())

    def status(proxy, cert):
        try:
            return requests.post(
                proxy.predict_url, data=b"image", verify=trusted, cert=cert, timeout=10
            ).status_code
        except requests.ConnectionError:
            return None

    with start_proxy(tls=tls) as proxy:
        assert status(proxy, known) == 200
        assert status(proxy, unknown) is None
        for content in ("", "no certificate"):
            new = tls / "new"
            new.write_text(content)
            new.rename(tls / "ca.crt")
            time.sleep(1)  # the kernel notifies Envoy of new files
            assert status(proxy, unknown) is None
    for content in ("", "no certificate"):
        (tls / "ca.crt").write_text(content)
        with start_proxy(tls=tls) as proxy:
            assert status(proxy, unknown) is None


# HEAD, methods, headers


def test_head_works_where_get_does_and_has_no_body(start_proxy):
    with start_proxy() as proxy:
        for path in ("/healthz", "/demo", "/openapi.json", "/v1/models/polarmask"):
            assert requests.get(proxy.url + path, timeout=10).ok
            sent = f"HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            head, _, body = raw(proxy, sent.encode()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert body == b""


def test_head_has_no_body_where_it_is_refused(start_proxy, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    with start_proxy(tokens=tokens) as proxy:
        for path, more, status in (
            ("/predictions/polarmask", "", b"401"),
            ("/predictions/polarmask", "Authorization: Bearer secret\r\n", b"405"),
            ("/v1/models/polarmask:predict", "Authorization: Bearer secret\r\n", b"405"),
            ("/nothing", "", b"404"),
            ("/nothing", "Expect: x\r\n", b"417"),
        ):
            sent = f"HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{more}\r\n"
            head, _, body = raw(proxy, sent.encode()).partition(b"\r\n\r\n")
            assert head.split(b" ")[1] == status
            assert body == b""


def test_a_header_with_an_underscore_is_left_out(start_proxy, model):
    with start_proxy() as proxy:
        assert requests.post(
            proxy.predict_url, data=b"image", headers={"X_Trace": "1", "X-Mask": "none"}, timeout=10
        ).ok
    ((_, headers),) = model.seen
    assert {name.lower() for name in headers} & {"x_trace", "x-mask"} == {"x-mask"}


@pytest.mark.parametrize("kilobytes", [8, 20, 61])
def test_headers_beyond_what_torchserve_takes_are_refused_by_name(start_proxy, model, kilobytes):
    with start_proxy() as proxy:
        assert code_of(ask(proxy, X_Long="a" * 1000 * kilobytes)) == (431, "headers_too_large")
        assert ask(proxy, X_Long="a" * 6_500).ok
        many = {f"X-{number}": "a" for number in range(70)}
        assert code_of(ask(proxy, **many)) == (431, "headers_too_large")
    assert len(model.seen) == 1


def test_what_a_client_expects_beyond_100_continue_is_refused_by_name(start_proxy):
    with start_proxy() as proxy:
        for path in ("/predictions/polarmask", "/nothing"):
            headers = {"Expect": "200-ok"}
            answer = requests.post(proxy.url + path, data=b"a", headers=headers, timeout=10)
            assert code_of(answer) == (417, "expectation_failed")
        assert ask(proxy, Expect="100-continue").ok


# Bodies


def test_torchserve_gets_every_body_as_bytes(start_proxy, model):
    kinds = ("image/png", "multipart/form-data; boundary=B", "application/json", None)
    with start_proxy() as proxy:
        for kind in kinds:
            assert ask(proxy, **({"Content-Type": kind} if kind else {})).ok
        assert ask(proxy, X_Content_Type="multipart/form-data; boundary=B").ok
    seen = [{name.lower(): value for name, value in headers.items()} for _, headers in model.seen]
    assert {each["content-type"] for each in seen} == {"application/octet-stream"}
    assert [each.get("x-content-type") for each in seen] == [*kinds, None]


def test_cors_is_a_setting(start_proxy):
    headers = {"Origin": "https://lab.example", "Access-Control-Request-Method": "POST"}
    for origins, allowed in (
        ((), None),
        (("https://lab.example",), "https://lab.example"),
        (("*",), "https://lab.example"),
        (("https://other.example",), None),
    ):
        with start_proxy(origins=origins) as proxy:
            before = requests.options(proxy.predict_url, headers=headers, timeout=10)
            answer = ask(proxy, Origin="https://lab.example")
        assert before.headers.get("access-control-allow-origin") == allowed
        assert answer.headers.get("access-control-allow-origin") == allowed
        if allowed:
            assert before.ok
            assert "X-Score-Threshold" in before.headers["access-control-allow-headers"]


def test_kserve_asks_for_readiness_at_the_models_own_address(start_proxy):
    with start_proxy() as proxy:
        answer = requests.get(f"{proxy.url}/v1/models/polarmask", timeout=10)
        assert answer.json() == {"name": "polarmask", "ready": True}
        other = requests.get(f"{proxy.url}/v1/models/other", timeout=10)
        assert code_of(other) == (404, "not_found")
        answer = requests.post(f"{proxy.url}/v1/models/polarmask", timeout=10)
        assert code_of(answer) == (405, "method_not_allowed")


def test_a_models_name_may_be_long(start_proxy):
    with start_proxy(name="m" * 100) as proxy:
        assert ask(proxy).ok


# Connections


def test_health_answers_beside_520_connections_that_send_nothing(start_proxy):
    """And the public port takes requests again once these have been silent for ten seconds."""
    with start_proxy() as proxy, silent_connections(port_of(proxy.url), 520):
        start = time.monotonic()
        while True:
            health = time.monotonic()
            assert proxy.health() == 200
            assert time.monotonic() - health < 1
            try:
                assert ask(proxy).ok
                break
            except requests.ConnectionError:
                assert time.monotonic() - start < 20
                time.sleep(0.1)


@pytest.mark.parametrize("sent", [b"", b"POST /predictions/polarmask HTTP/1.1\r\nHost: a\r\nX-A: "])
def test_a_connection_that_sends_no_whole_request_is_closed_soon(start_proxy, sent):
    with start_proxy() as proxy, silent_connections(port_of(proxy.url), 1, sent=sent) as opened:
        start = time.monotonic()
        answer = b"".join(iter(lambda: opened[0].recv(1000), b""))
        assert time.monotonic() - start < 15
    assert answer.startswith(b"HTTP/1.1 408" if sent else b"")
