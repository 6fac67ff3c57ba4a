"""Cost of serving: proxy, TorchServe and handler against the Predictor, in one run.

    .venv/bin/python benchmarks/serving.py
    .venv/bin/python benchmarks/serving.py --soak 30     # 30 minutes at 90 % of capacity

Both sides have random weights, one thread and one worker, and run in turns, so that other load on
the machine slows both. The Predictor gets pixels; the server gets a JPEG over HTTP and returns
polygons. The added latency is measured with a small network, where it stands out from the noise;
the throughput with a ResNet-50, folded float32 on both sides.

The soak test sends requests to the `tiny` network and samples the memory of each process every five
seconds. Growth is the mean of the last fifth of the samples against the mean of the first fifth,
without the first five minutes (or the first sixth of a short soak). It writes soak.json, and fails
if a request failed or memory grew by 2 % or more.
"""

import argparse
import contextlib
import datetime
import json
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import requests
import torch
from harness import Result, machine, main, wrong
from pages import SOAK, write_pages

from polarmask.config.presets import preset, tiny
from polarmask.config.settings import PostprocessConfig
from polarmask.data.coco import Category
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask
from polarmask.system.files import write_text
from polarmask_serving.archive.build import build_archive
from polarmask_serving.local_pod import LocalPod

IMAGE_HW = (480, 640)
SCORE = {"X-Score-Threshold": "0"}


def make_model(folder, config):
    """Write a model with random weights that always finds the maximum of 30 instances."""
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


def sample_image():
    """Return a JPEG's decoded pixels, and the JPEG."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (30, 40, 3), np.uint8)
    pixels = cv2.resize(coarse, IMAGE_HW[::-1], interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[..., ::-1]), jpeg


@dataclass
class Sides:
    """The same model twice: in this process (bare), and served."""

    bare: Predictor
    pod: LocalPod
    pixels: np.ndarray
    jpeg: bytes

    def __post_init__(self):
        self._local = threading.local()

    def predict(self):
        return self.bare.predict([self.pixels])[0]

    def request(self):
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session.post(self.pod.url, data=self.jpeg, headers=SCORE, timeout=120)

    def check(self):
        """Stop unless both find the same instances."""
        found, answer = self.predict(), self.request().json()
        scores = [each["score"] for each in answer["instances"]]
        # 1e-3: the answer is rounded to 4 digits.
        if len(scores) != len(found) or not np.allclose(scores, found.scores, atol=1e-3):
            wrong(f"the server finds {scores}, the Predictor {found.scores.tolist()}")

    def resident(self):
        """Return the resident bytes of each process of the served side."""
        memory, workers = {}, 0
        for process in psutil.process_iter():  # sorted by process id
            with contextlib.suppress(psutil.Error):
                if self.pod.scratch not in " ".join(process.cmdline()):
                    continue
                name = process.name()
                if name.startswith("python"):
                    name, workers = f"worker {workers}", workers + 1
                memory[name] = process
        return {name: process.memory_info().rss for name, process in memory.items()}


@contextlib.contextmanager
def both_sides(config):
    """Load the model in this process and serve it, each with one thread."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_model(folder / "model", config)
        archive = build_archive(model, folder / "model.mar", name="polarmask", version="1")
        pod = LocalPod.start(archive, folder)
        try:
            yield Sides(Predictor.load(model, threads=1), pod, *sample_image())
        finally:
            pod.stop()


def overhead_ms(sides, *, blocks, warm_up):
    """Return the median latency of the served and the bare side, in turns, with one client.

    Each is the median of the fastest block of 25 requests: other load slows whole blocks.
    """
    for _ in range(warm_up):  # Java compiles code after some hundred calls
        sides.request()
    served, bare = [], []
    for number in range(25 * blocks + 3):
        for times, way in ((bare, sides.predict), (served, sides.request)):
            started = time.perf_counter()
            way()
            if number >= 3:  # warm-up
                times.append(1000 * (time.perf_counter() - started))
    return tuple(
        float(np.median(np.reshape(t, (blocks, 25)), axis=1).min()) for t in (served, bare)
    )


def rates(sides, *, turns, images):
    """Return images/s of the served side under full load and of the bare side, in turns."""
    served, bare = [], []
    with ThreadPoolExecutor(3) as clients:  # one in work, one queued, one in transfer
        for _ in range(turns):
            started = time.perf_counter()
            for _ in range(images):
                sides.predict()
            bare.append(images / (time.perf_counter() - started))
            started = time.perf_counter()
            answers = list(clients.map(lambda _: sides.request().status_code, range(images)))
            served.append(images / (time.perf_counter() - started))
            if set(answers) != {200}:
                wrong(f"the server answered {sorted(set(answers))}")
    return float(np.median(served)), float(np.median(bare))


def run(quick):
    small = replace(tiny(), input=replace(tiny().input, short_side=96))
    with both_sides(small) as sides:
        sides.check()
        served, bare = overhead_ms(sides, blocks=1 if quick else 12, warm_up=5 if quick else 400)
    yield Result("median latency, small network, served (reference: Predictor)", served, bare, "ms")
    yield Result("median latency that serving adds", served - bare, None, "ms", goal="< 8 ms")
    name, config = "small network", small
    if not quick:
        name, config = "ResNet-50, 512 pixels", preset("coco-r50-1x")
        config = replace(config, input=replace(config.input, short_side=512, max_side=512))
    with both_sides(config) as sides:
        sides.check()
        served, bare = rates(sides, turns=1 if quick else 3, images=10)
    yield Result(
        f"throughput under full load, {name}, served (reference: Predictor)",
        served,
        bare,
        "images/s",
        goal=None if quick else ">= 0.9 x",
    )


def soak(minutes, config):
    """Send requests at 90 % of capacity; return statuses, times and growth of memory."""
    with both_sides(config) as sides:
        sides.check()
        capacity, _ = rates(sides, turns=2, images=20)
        pace = 1 / (0.9 * capacity)
        began, settled = time.monotonic(), 60 * min(5, minutes / 6)
        statuses, times, samples = Counter(), [], []
        lock = threading.Lock()

        def send():
            started = time.monotonic()
            try:
                status = str(sides.request().status_code)
            except requests.RequestException as error:
                status = type(error).__name__
            with lock:
                statuses[status] += 1
                times.append(time.monotonic() - started)

        with ThreadPoolExecutor(8) as clients:
            sent = 0
            while (now := time.monotonic() - began) < 60 * minutes:
                if now > 5 * len(samples):
                    samples.append((now, sides.resident()))
                    if len(samples) % 12 == 1:
                        log(now, statuses, samples[-1][1])
                clients.submit(send)
                sent += 1
                time.sleep(max(0.0, began + sent * pace - time.monotonic()))
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "minutes": minutes,
        "capacity_images_per_second": round(capacity, 2),
        "requests_per_second": round(sent / now, 2),
        "answers": dict(statuses),
        "errors": sum(count for status, count in statuses.items() if status != "200"),
        "p50_ms": round(1000 * float(np.median(times)), 1),
        "p99_ms": round(1000 * float(np.quantile(times, 0.99)), 1),
        "memory_mb_at_first": in_mb(samples[0][1]),
        "memory_mb_at_last": in_mb(samples[-1][1]),
        "memory_growth_percent": growth([memory for now, memory in samples if now > settled]),
    }


def growth(samples):
    """Return by how many percent the last fifth of the samples exceeds the first, by process."""
    fifth = max(1, len(samples) // 5)
    held = {name: [sample[name] for sample in samples] for name in samples[0]}
    held["all"] = [sum(sample.values()) for sample in samples]
    return {
        name: round(100 * float(np.mean(sizes[-fifth:]) / np.mean(sizes[:fifth]) - 1), 2)
        for name, sizes in held.items()
    }


def in_mb(memory):
    return {name: round(size / 1e6, 1) for name, size in memory.items()}


def log(seconds, statuses, memory):
    held = ", ".join(f"{name} {size:.0f} MB" for name, size in in_mb(memory).items())
    print(f"{seconds / 60:5.1f} min  answers {dict(statuses)}, {held}", flush=True)


def run_soak(minutes):
    found = soak(minutes, tiny())
    print(json.dumps(found, indent=1))
    write_text(SOAK, json.dumps(found, indent=1) + "\n")
    write_pages()
    grown = found["memory_growth_percent"]["all"]
    if found["errors"] or grown >= 2:
        raise SystemExit(f"{found['errors']} errors, memory grew by {grown} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    given, _ = parser.parse_known_args()
    if given.soak is None:
        main(run, __doc__)
    else:
        run_soak(given.soak)
