"""What serving costs: proxy, TorchServe and handler against the bare Predictor, in one run.

    .venv/bin/python benchmarks/serving.py
    .venv/bin/python benchmarks/serving.py --soak 30     # 30 minutes at 90 % of capacity

Both sides have random weights, one thread and one worker, and take turns, so that a neighbour slows
both. The bare side gets pixels; the served side a JPEG, over HTTP, and answers with polygons. The
overhead is taken with a small network, beside whose time it can be seen; the throughput with a
ResNet-50, as it is served.
"""

import argparse
import contextlib
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import requests
import torch
from frame import Result, main, wrong

from polarmask.coco import Category
from polarmask.config import PostprocessConfig
from polarmask.detector import PolarMask
from polarmask.inference import Predictor
from polarmask.model_folder import ModelCard, save_model
from polarmask.presets import preset, tiny
from polarmask_serving import launch
from polarmask_serving.packaging import build_archive
from polarmask_serving.proxy import LocalProxy
from polarmask_serving.proxy_config import Front, Limits
from polarmask_serving.server import LocalServer

IMAGE_HW = (480, 640)
SCORE = {"X-Score-Threshold": "0"}


def make_model(folder, config):
    """Write a model with random weights that finds the most instances it may, 30."""
    torch.manual_seed(0)
    config = replace(
        config,
        model=replace(config.model, num_classes=2),
        postprocess=PostprocessConfig(max_instances=30),
    )
    detector = PolarMask(config.model)
    torch.nn.init.normal_(detector.head.ray.weight, std=0.1)
    torch.nn.init.normal_(detector.head.class_logit.weight, std=0.2)
    torch.nn.init.constant_(detector.head.quality_logit.bias, 3.0)
    categories = (Category(1, "cell"), Category(2, "debris"))
    save_model(folder, detector, ModelCard(config, categories, {"seed": "0"}, {}))
    return folder


def picture():
    """Return pixels as a JPEG gives them back, and the JPEG."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (30, 40, 3), np.uint8)
    pixels = cv2.resize(coarse, IMAGE_HW[::-1], interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[..., ::-1]), jpeg


@dataclass
class Sides:
    """The same model twice: bare in this process, and served."""

    bare: Predictor
    proxy: LocalProxy
    server: LocalServer
    pixels: np.ndarray
    jpeg: bytes

    def __post_init__(self):
        self._local = threading.local()

    @property
    def url(self):
        return f"{self.proxy.url}/predictions/polarmask"

    def predict(self):
        return self.bare.predict([self.pixels])[0]

    def ask(self):
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session.post(self.url, data=self.jpeg, headers=SCORE, timeout=120)

    def check(self):
        """Stop if the two do not find the same."""
        found, answer = self.predict(), self.ask().json()
        scores = [each["score"] for each in answer["instances"]]
        # 1e-3: the answer is rounded to 4 digits.
        if len(scores) != len(found) or not np.allclose(scores, found.scores, atol=1e-3):
            wrong(f"the server finds {scores}, the Predictor {found.scores.tolist()}")

    def resident(self):
        """Return the bytes each process of the served side holds."""
        java = psutil.Process(self.server.pid)
        memory = {"envoy": psutil.Process(self.proxy.process.pid), "java": java}
        memory |= {f"worker {n}": each for n, each in enumerate(java.children(recursive=True))}
        return {name: process.memory_info().rss for name, process in memory.items()}


@contextlib.contextmanager
def both_sides(config):
    """Load the model in this process and serve it, with the worker's number of threads: one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_model(folder / "model", config)
        archive = build_archive(model, folder / "model.mar", name="polarmask", version="1")
        scratch = folder / "proxy"
        scratch.mkdir()
        ports = launch.choose_ports()
        front = Front(
            host="127.0.0.1",
            port=ports["inference_port"],
            operations_port=ports["metrics_port"],
            scratch=scratch,
        )
        with LocalServer.start(folder / "server") as server:
            server.register(archive)
            with LocalProxy.start(front, server.target, Limits()) as proxy:
                bare = Predictor.load(model, threads=1)
                yield Sides(bare, proxy, server, *picture())


def overhead_ms(sides, *, rounds, warm_up):
    """Return the medians of the served and the bare side, asked in turns by one client."""
    for _ in range(warm_up):  # Java compiles what it has run some hundred times
        sides.ask()
    served, bare = [], []
    for number in range(rounds + 3):
        for times, way in ((bare, sides.predict), (served, sides.ask)):
            started = time.perf_counter()
            way()
            if number >= 3:  # the first ones warm up
                times.append(1000 * (time.perf_counter() - started))
    return float(np.median(served)), float(np.median(bare))


def rates(sides, *, turns, images):
    """Return images/s of the served side kept busy and of the bare side, in turns."""
    served, bare = [], []
    with ThreadPoolExecutor(3) as clients:  # one is worked on, one is next, one comes and goes
        for _ in range(turns):
            started = time.perf_counter()
            for _ in range(images):
                sides.predict()
            bare.append(images / (time.perf_counter() - started))
            started = time.perf_counter()
            answers = list(clients.map(lambda _: sides.ask().status_code, range(images)))
            served.append(images / (time.perf_counter() - started))
            if set(answers) != {200}:
                wrong(f"the server answered {sorted(set(answers))}")
    return float(np.median(served)), float(np.median(bare))


def run(quick):
    small = replace(tiny(), input=replace(tiny().input, short_side=96))
    with both_sides(small) as sides:
        sides.check()
        served, bare = overhead_ms(sides, rounds=5 if quick else 100, warm_up=5 if quick else 400)
    yield Result("p50 of one request, small network, served", served, bare, "ms")
    yield Result("p50 that serving adds", served - bare, None, "ms", goal="< 8 ms")
    name, config = "small network", small
    if not quick:
        name, config = "ResNet-50, 512 pixels", preset("coco-r50-1x")
        config = replace(config, input=replace(config.input, short_side=512, max_side=512))
    with both_sides(config) as sides:
        sides.check()
        served, bare = rates(sides, turns=1 if quick else 4, images=12)
    yield Result(
        f"served at saturation, {name}",
        served,
        bare,
        "images/s",
        goal=None if quick else ">= 0.9 x",
    )


def soak(minutes, config):
    """Ask at 90 % of capacity; return what came back and how memory grew after a sixth of it."""
    with both_sides(config) as sides:
        sides.check()
        capacity, _ = rates(sides, turns=2, images=20)
        pace = 1 / (0.9 * capacity)
        began, settled = time.monotonic(), 60 * min(5, minutes / 6)
        statuses, times = {}, []
        lock = threading.Lock()

        def ask():
            started = time.monotonic()
            try:
                status = str(sides.ask().status_code)
            except requests.RequestException as error:
                status = type(error).__name__
            with lock:
                statuses[status] = statuses.get(status, 0) + 1
                times.append(time.monotonic() - started)

        samples = []
        with ThreadPoolExecutor(8) as clients:
            sent = 0
            while (now := time.monotonic() - began) < 60 * minutes:
                if now > settled and now - settled > 5 * len(samples):
                    samples.append(sides.resident())
                clients.submit(ask)
                sent += 1
                time.sleep(max(0.0, began + sent * pace - time.monotonic()))
    # Means of the first and the last fifth: one sample says what the collector happens to hold.
    fifth = max(1, len(samples) // 5)
    held = {name: [sample[name] for sample in samples] for name in samples[0]}
    held["all"] = [sum(sample.values()) for sample in samples]
    growth = {
        name: round(100 * float(np.mean(sizes[-fifth:]) / np.mean(sizes[:fifth]) - 1), 2)
        for name, sizes in held.items()
    }
    return {
        "minutes": minutes,
        "capacity_images_per_second": capacity,
        "asked_per_second": 0.9 * capacity,
        "answers": statuses,
        "p50_ms": 1000 * float(np.median(times)),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "memory_mb": {name: round(size / 1e6, 1) for name, size in samples[-1].items()},
        "memory_growth_percent": growth,
        "errors": sum(count for status, count in statuses.items() if status != "200"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    given, _ = parser.parse_known_args()
    if given.soak is None:
        main(run, __doc__)
    else:
        print(json.dumps(soak(given.soak, tiny()), indent=1))
