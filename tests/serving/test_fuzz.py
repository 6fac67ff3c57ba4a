"""Damaged requests: each gets an answer or a reason, and no worker dies of any."""

import base64
import collections
import concurrent.futures
import contextlib
import json
import os
import random
import threading
import time

import jsonschema
import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from costly_requests import silent_connections
from damaged_images import damaged_file, image_files
from damaged_requests import damaged_requests
from polarmask.data.images import read_image
from polarmask.errors import DataError
from polarmask.inference.predictor import Predictor
from polarmask_serving.answer.batch import Request, answer_batch
from polarmask_serving.proxy import openapi
from proxy_process import running_proxy

REASONS = {(error.status, error.code) for error in openapi.answer_errors() if error.status < 500}


NUMBER = int(os.environ.get("FUZZ", "10000"))
"""Of damaged requests, and of damaged files."""
SERVED = (200, 400, 413, 415, 503)


@pytest.fixture(scope="module")
def images(picture):
    files = image_files(picture[30:90, 50:150])
    return [data for name, data in files.items() if name.endswith(("jpeg", "png"))]


@pytest.fixture(scope="module")
def validator():
    document = openapi.document()
    return jsonschema.Draft202012Validator(
        {
            "oneOf": [
                {"$ref": f"#/components/schemas/{name}"}
                for name in ("Answer", "Answers", "Refusal")
            ],
            "components": document["components"],
        }
    )


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    """Envoy in front of the server; it lets all through that these tests send at once."""
    with running_proxy(tmp_path_factory.mktemp("proxy"), server.target) as started:
        yield started


def worker_pids(server):
    children = psutil.Process(server.pid).children(recursive=True)
    return {c.pid for c in children if any("model_service_worker" in a for a in c.cmdline())}


class Health(threading.Thread):
    """Asks for the pod's health as a kubelet does, only more often, until the block ends."""

    def __init__(self, proxy):
        super().__init__()
        self.statuses = collections.Counter()
        self.slowest = 0.0
        self._url = f"{proxy.operations_url}/healthz"
        self._over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()

    def run(self):
        while not self._over.wait(0.2):
            start = time.monotonic()
            try:
                self.statuses[requests.get(self._url, timeout=10).status_code] += 1
            except requests.RequestException as error:
                self.statuses[type(error).__name__] += 1
            self.slowest = max(self.slowest, time.monotonic() - start)


def send_all(proxy, requests_to_send, *, threads):
    """Send them and return how often each kind got each status, and what is no answer of ours.

    A client that finds no free connection tries again, as clients do.
    """
    session = requests.Session()
    session.trust_env = False
    url = f"{proxy.url}/predictions/polarmask"

    def send(damaged):
        headers = {name: value.encode("latin-1") for name, value in damaged.headers.items()}
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = session.post(url, data=damaged.body, headers=headers, timeout=60)
            except requests.ConnectionError:
                assert time.monotonic() < deadline, damaged.kind
                time.sleep(0.5)
            else:
                return damaged, answer

    counts, odd = collections.Counter(), []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for damaged, answer in pool.map(send, requests_to_send):
            counts[damaged.kind, answer.status_code] += 1
            if answer.status_code not in SERVED:
                odd.append((damaged, answer.status_code, answer.text[:300]))
    return counts, odd


def test_three_hundred_damaged_requests_are_answered_or_refused(random_model, images, validator):
    predictor = Predictor.load(random_model, threads=1)
    sent = [each for each in damaged_requests(images, 400, seed=4) if "form" not in each.kind][:300]
    codes = collections.Counter()
    for first in range(0, len(sent), 4):
        some = sent[first : first + 4]
        batch = [Request(fields={"body": d.body}, headers=d.headers) for d in some]
        for answer in answer_batch(predictor, batch, {"name": "m", "version": "1"}):
            validator.validate(json.loads(answer.body))
            if answer.error is not None:
                assert (answer.error.status, answer.error.code) in REASONS
                codes[answer.error.code] += 1
    # Every refusal of an image comes up, and no fault of ours.
    # This model knows no size of training images, so it cuts none into tiles.
    never = {"bad_form", "too_many_tiles", "answer_too_large"}
    assert set(codes) == {code for _, code in REASONS} - never
    assert 0 < sum(codes.values()) < len(sent)


def test_a_worker_survives_two_hundred_damaged_requests(server, proxy, images):
    before = worker_pids(server)
    counts, odd = send_all(proxy, damaged_requests(images, 200, seed=1), threads=2)
    assert odd == []
    assert counts.total() == 200
    assert worker_pids(server) == before != set()


@pytest.mark.fuzz
def test_workers_and_health_survive_ten_thousand_damaged_requests(server, proxy, images, capsys):
    before = worker_pids(server)
    with Health(proxy) as health, silence_at_times(proxy):
        counts, odd = send_all(proxy, damaged_requests(images, NUMBER, seed=2), threads=4)
    with capsys.disabled():
        print()  # noqa: T201 the counts are what a person wants of this run
        for (kind, status), number in sorted(counts.items()):
            print(f"{kind:11} {status} {number:6}")  # noqa: T201 as above
        print(f"health {dict(health.statuses)}, slowest {health.slowest:.2f} s")  # noqa: T201  # a figure for the docs
    assert odd == []
    assert set(health.statuses) == {200}
    assert health.slowest < 1
    assert worker_pids(server) == before != set()


@contextlib.contextmanager
def silence_at_times(proxy):
    """Hold more silent connections than the proxy accepts, for 5 of every 20 seconds."""
    over = threading.Event()
    port = int(proxy.url.rpartition(":")[2])

    def hold():
        while not over.wait(15):
            with silent_connections(port, 520):
                over.wait(5)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        try:
            yield
        finally:
            over.set()
    held.result()


@pytest.mark.parametrize(
    "number", [300, pytest.param(NUMBER, marks=pytest.mark.fuzz)], ids=["few", "many"]
)
def test_an_image_file_that_is_damaged_in_its_structure_is_read_or_refused_by_name(
    picture, tmp_path, number
):
    files = list(image_files(picture[30:90, 50:150]).values())
    path, rng, read = tmp_path / "image", random.Random(3), 0
    for _ in range(number):
        path.write_bytes(damaged_file(rng, files))
        try:
            assert read_image(path, max_pixels=10**6).ndim >= 2
            read += 1
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 most, not all, are refused
    assert 0 < read < number


@pytest.mark.fuzz
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_server_keeps_to_its_openapi_document(server, proxy, images, mode, capsys):
    """Positive: what the document allows is served. Negative: what it doesn't is refused."""
    before = worker_pids(server)
    sent = collections.Counter()
    for operation in operations(server, images):
        if operation.method == "get" and mode == "negative":
            continue  # there is nothing to get wrong
        ask_as_documented(operation, GenerationMode(mode), proxy.url, sent)
    with capsys.disabled():
        print(f"\n{mode}: {dict(sent)}")  # noqa: T201 the counts are what a person wants
    assert sent.total() > 500
    assert worker_pids(server) == before


def operations(server, images):
    """Yield the document's operations, with the names and images that this server knows."""
    files = st.sampled_from(images)
    for kind in ("image/png", "image/jpeg"):
        schemathesis.openapi.media_type(kind, files)
    schemathesis.openapi.format("binary", files)
    schemathesis.openapi.format("byte", files.map(lambda data: base64.b64encode(data).decode()))
    known = {
        "model": {"enum": ["polarmask"]},
        "version": {"enum": [server.version]},
        "X-Categories": {"type": "string", "enum": ["nucleus", "7", "debris,3", "[3]"]},
    }
    document = openapi.document()
    for operation in (each for item in document["paths"].values() for each in item.values()):
        operation["parameters"] = [
            each | {"schema": known.get(each["name"], each["schema"])}
            for each in operation.get("parameters", [])
            if each["in"] != "query"  # becomes a header, so the two would fight
        ]
        form = operation.get("requestBody", {"content": {}})["content"].get("multipart/form-data")
        if form:
            form["schema"]["properties"]["categories"] = known["X-Categories"]
    for name in ("OneImage", "Images"):
        parameters = document["components"]["schemas"][name]["properties"]["parameters"]
        parameters["properties"]["categories"]["items"] = {"enum": [3, 7, "nucleus", "debris"]}
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        yield found.ok()


def ask_as_documented(operation, mode, url, sent):
    @settings(
        max_examples=250,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        assume(all(case.headers.values()))  # TorchServe drops empty headers
        answer = case.call(base_url=url, timeout=60)
        # An image of a list fails alone, so a list may break the rules and be answered.
        alone = (
            [negative_data_rejection]
            if b'{"error":' in answer.content and answer.status_code == 200
            else []
        )
        case.validate_response(answer, excluded_checks=alone)
        sent[operation.label, answer.status_code] += 1

    ask()
