"""Roll-outs of real TorchServe pods while clients keep asking: what they notice."""

import textwrap
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from polarmask_components.deploy import register_model as packing
from polarmask_components.deploy.ask_server import ask, check_answer
from polarmask_components.errors import RollOutError
from polarmask_serving.archive.build import build_archive
from polarmask_serving.archive.read import read_archive
from polarmask_serving.errors import ServerError
from serving_cluster import cluster_of_one_image, make_model

pytestmark = pytest.mark.slow
MOST_PER_SECOND = 20
MOST_LOAD = 0.2
"""Of one pod: one more starts on the same cores meanwhile, and a full queue is no lost answer."""
PODS = 2  # as the shipped autoscaler has at least
HANDLERS = {
    "answers-nonsense": """
        def initialize(self, context): pass
        def handle(self, rows, context): return [b'{"instances": "none"}'] * len(rows)
    """,
    "starts-too-slowly": """
        def initialize(self, context):
            import time
            time.sleep(600)
        def handle(self, rows, context): return [b'{}'] * len(rows)
    """,
    "crashes": """
        def initialize(self, context): raise RuntimeError("weights are missing")
        def handle(self, rows, context): return [b'{}'] * len(rows)
    """,
}


@dataclass(frozen=True)
class Seen:
    """What one request came to."""

    sent: float
    answered: float
    what: str
    """The version, or what was wrong."""


class Clients:
    """Send images at a constant rate, one that this machine can serve, until the block ends.

    Each goes over a connection of its own.
    """

    def __init__(self, cluster):
        self._cluster = cluster
        self._url = cluster.url
        self.seen = []

    def __enter__(self):
        self._over = threading.Event()
        seconds = sorted(self._seconds_of_one() for _ in range(10))
        self._per_second = min(MOST_PER_SECOND, MOST_LOAD / seconds[5])
        self._pool = ThreadPoolExecutor(64)
        self._pacer = threading.Thread(target=self._send)
        self._pacer.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._pacer.join()
        self._pool.shutdown()

    def _send(self):
        start = time.monotonic()
        number = 0
        while not self._over.wait(max(0, start + number / self._per_second - time.monotonic())):
            self._pool.submit(self._ask)
            number += 1

    def _seconds_of_one(self):
        start = time.monotonic()
        ask(self._url, self._cluster.image)
        return time.monotonic() - start

    def _ask(self):
        sent = time.monotonic()
        try:
            answer = ask(self._url, self._cluster.image)
            version = str((answer.get("model") or {}).get("version"))
            check_answer(answer, "polarmask", version)
        except ServerError as error:
            version = f"failed: {error}"
        self.seen.append(Seen(sent, time.monotonic(), version))

    def counts(self):
        return Counter(each.what for each in self.seen)

    def failures(self):
        """Return how many there were, and when the failed ones began and ended."""
        start = min(each.sent for each in self.seen)
        times = [
            (round(each.sent - start, 2), round(each.answered - start, 2), each.what)
            for each in self.seen
            if each.what.startswith("failed")
        ]
        return len(self.seen), times


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    with cluster_of_one_image(s3_server, folder, stand_in=False) as cluster:
        cluster.deploy(make_model(folder / "first", seed=1))
        cluster.scale(PODS)
        yield cluster


def test_clients_notice_nothing_of_a_good_roll_out(cluster, tmp_path):
    before = cluster.registry.champion_version()
    model = make_model(tmp_path / "second", seed=2)
    with Clients(cluster) as clients:
        deployed = cluster.deploy(model)
        done = time.monotonic()
        cluster.server.wait_for(lambda: len(cluster.server.list("Pod")) == PODS, 60)  # drained
        time.sleep(2)
    assert set(clients.counts()) == {before, deployed.version}, clients.failures()
    late = {each.what for each in clients.seen if each.sent > done}
    assert late == {deployed.version}


@pytest.mark.parametrize("behaviour", HANDLERS)
def test_a_bad_version_is_taken_back(cluster, tmp_path, monkeypatch, behaviour):
    champion = cluster.registry.champion_version()
    seconds = 40 if behaviour == "starts-too-slowly" else 120
    cluster.change(lambda deployment: deployment["spec"].update(progressDeadlineSeconds=seconds))
    monkeypatch.setattr(packing, "build_archive", builder_of(HANDLERS[behaviour]))
    model = make_model(tmp_path / "bad", seed=3, behaviour=behaviour)
    with Clients(cluster) as clients:
        with pytest.raises(RollOutError, match=f"version {champion} answers again") as caught:
            cluster.deploy(model)
        done = time.monotonic()
        cluster.server.wait_for(lambda: len(cluster.server.list("Pod")) == PODS, 60)
        time.sleep(2)
    if behaviour == "crashes":
        assert "weights are missing" in str(caught.value)
    assert cluster.registry.champion_version() == champion
    served = Counter(each.what for each in clients.seen if each.sent > done)
    assert set(served) == {champion}, served
    if behaviour != "answers-nonsense":  # that one served until the check
        assert set(clients.counts()) == {champion}, clients.failures()


def builder_of(methods):
    """Return a `build_archive` whose archives have another handler."""

    def build(model, out, **options):
        good = build_archive(model, out.with_suffix(".good"), **options)
        source = "class Handler:\n" + textwrap.indent(textwrap.dedent(methods), "    ")
        with zipfile.ZipFile(good.path) as old, zipfile.ZipFile(out, "w") as new:
            for entry in old.namelist():
                handler = entry == "polarmask_handler.py"
                new.writestr(entry, source if handler else old.read(entry))
        return read_archive(out)

    return build
