"""Damaged requests: each gets an answer or a reason, and no worker dies of any."""

import collections
import concurrent.futures
import json

import jsonschema
import psutil
import pytest
import requests

from damaged_requests import damaged_requests, real_images
from polarmask.inference import Predictor
from polarmask_serving import openapi
from polarmask_serving.batch import Asked, answer_batch

REASONS = {(error.status, error.code) for error in openapi.answer_errors() if error.status < 500}


@pytest.fixture(scope="module")
def images(picture):
    return real_images(picture[30:90, 50:150])


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


def worker_pids(server):
    children = psutil.Process(server.pid).children(recursive=True)
    return {c.pid for c in children if any("model_service_worker" in a for a in c.cmdline())}


def send_all(server, requests_to_send, *, threads):
    """Send them and return how often each kind got each status, and what is no answer of ours."""
    session = requests.Session()
    session.trust_env = False

    def send(damaged):
        headers = {name: value.encode("latin-1") for name, value in damaged.headers.items()}
        answer = session.post(server.predict_url, data=damaged.body, headers=headers, timeout=60)
        return damaged, answer

    counts, odd = collections.Counter(), []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for damaged, answer in pool.map(send, requests_to_send):
            counts[damaged.kind, answer.status_code] += 1
            if answer.status_code not in (200, 400, 413, 415, 503):
                odd.append((damaged, answer.status_code, answer.text[:300]))
    return counts, odd


def test_three_hundred_damaged_requests_are_answered_or_refused(random_model, images, validator):
    predictor = Predictor.load(random_model, threads=1)
    sent = [each for each in damaged_requests(images, 400) if each.kind != "form"][:300]
    codes = collections.Counter()
    for first in range(0, len(sent), 4):
        batch = [Asked(fields={"body": d.body}, headers=d.headers) for d in sent[first : first + 4]]
        for answer in answer_batch(predictor, batch, {"name": "m", "version": "1"}):
            validator.validate(json.loads(answer.body))
            if answer.error is not None:
                assert (answer.error.status, answer.error.code) in REASONS
                codes[answer.error.code] += 1
    assert len(codes) == 7 - 1  # every refusal comes up, and no fault of ours
    assert 0 < sum(codes.values()) < len(sent)


def test_a_worker_survives_two_hundred_damaged_requests(server, images):
    before = worker_pids(server)
    counts, odd = send_all(server, damaged_requests(images, 200, seed=1), threads=2)
    assert odd == []
    assert counts.total() == 200
    assert worker_pids(server) == before != set()


@pytest.mark.fuzz
def test_a_worker_survives_ten_thousand_damaged_requests(server, images):
    before = worker_pids(server)
    counts, odd = send_all(server, damaged_requests(images, 10_000, seed=2), threads=4)
    print()
    for (kind, status), number in sorted(counts.items()):
        print(f"{kind:10} {status} {number:6}")
    assert odd == []
    assert worker_pids(server) == before != set()
