"""A model with random weights, its archive, and one real TorchServe for the whole session."""

import json
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch

from polarmask.config.presets import tiny
from polarmask.config.settings import PostprocessConfig
from polarmask.data.coco import Category
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.network.detector import PolarMask
from polarmask_serving.archive.build import build_archive
from polarmask_serving.archive.read import DESCRIPTION, read_archive
from polarmask_serving.local_pod import LocalPod
from polarmask_serving.torchserve.probe import Target

CATEGORIES = (Category(3, "nucleus"), Category(7, "debris"))


@pytest.fixture(scope="session")
def picture():
    """(120, 200, 3) RGB, its four quarters in different colours."""
    image = np.zeros((120, 200, 3), np.uint8)
    image[:60, :100] = (200, 30, 30)
    image[:60, 100:] = (30, 200, 30)
    image[60:, :100] = (30, 30, 200)
    image[60:, 100:] = (220, 220, 220)
    return image


@pytest.fixture(scope="session")
def png(picture):
    return encode(".png", picture)


@pytest.fixture(scope="session")
def jpeg(picture):
    return encode(".jpg", picture)


def encode(suffix, rgb):
    return cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """A model folder: random weights that find many odd shapes with scores above 0.3."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = replace(
        tiny(),
        model=replace(tiny().model, num_classes=len(CATEGORIES)),
        postprocess=PostprocessConfig(max_instances=30),
    )
    detector = PolarMask(config.model)
    torch.nn.init.normal_(detector.head.ray.weight, std=0.1)
    torch.nn.init.normal_(detector.head.class_logit.weight, std=0.2)
    torch.nn.init.constant_(detector.head.class_logit.bias, 1.0)
    torch.nn.init.constant_(detector.head.quality_logit.bias, 3.0)
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(folder, detector, ModelCard(config, CATEGORIES, {"data_commit": "abc"}, {}))
    return folder


@pytest.fixture(scope="session")
def archive(random_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("archives") / "first.mar"
    return build_archive(random_model, out, name="polarmask", version="1")


@pytest.fixture
def archive_of_handler(archive, tmp_path):
    """Return a function that copies the archive with another handler, whose limits are a second."""

    def build(methods, *, version):
        out = tmp_path / f"{version}.mar"
        with zipfile.ZipFile(archive.path) as old, zipfile.ZipFile(out, "w") as new:
            manifest = json.loads(old.read("MAR-INF/MANIFEST.json"))
            manifest["model"]["modelVersion"] = version
            new.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            new.writestr(DESCRIPTION, old.read(DESCRIPTION))
            source = "class Handler:\n" + textwrap.indent(methods, "    ")
            new.writestr("polarmask_handler.py", source)
            limits = "responseTimeout: 1\nstartupTimeout: 60\nmaxRetryTimeoutInSec: 1\n"
            new.writestr("model-config.yaml", limits)
        return read_archive(out)

    return build


class Server:
    """What tests ask of the TorchServe of a pod, past its proxy."""

    def __init__(self, pod):
        self.pod = pod
        self.version = pod.version
        self.log = pod.log
        self.target = Target.read(Path(pod.scratch))
        urls = {name: f"http://127.0.0.1:{port}" for name, port in self.target.ports.items()}
        self.inference_url, self.management_url = urls["inference_port"], urls["management_port"]
        self.predict_url = f"{self.inference_url}/predictions/{pod.name}"
        self.metrics_url = urls["metrics_port"] + "/metrics"
        (self.pid,) = (
            each.pid
            for each in psutil.process_iter()
            if each.name() == "java" and pod.scratch in " ".join(each.cmdline())
        )


@pytest.fixture(scope="session")
def server(archive, tmp_path_factory):
    """The TorchServe of a pod, whose logs lie in a long path with spaces."""
    folder = tmp_path_factory.mktemp("server") / "a path with spaces" / ("long" * 30)
    pod = LocalPod.start(archive, folder)
    yield Server(pod)
    pod.stop()
