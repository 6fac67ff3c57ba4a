"""New models tried on copies of live requests in pods of real TorchServe."""

import shutil
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from polarmask.config.presets import tiny
from polarmask.config.settings import PostprocessConfig
from polarmask.data.coco import Category
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.network.detector import PolarMask
from polarmask_components.errors import RollOutError
from polarmask_serving.errors import ServerError
from serving_cluster import ServingCluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders k8s/"),
]
COPIES = {"copies": 0.5, "minutes": 0.3, "min_requests": 15, "max_slowdown": 5}
"""Two cores for two versions: their times prove little."""


def make_finding_model(folder, *, seed, note):
    """Write a model with random weights that finds its 20 best guesses in any image."""
    torch.manual_seed(seed)
    config = replace(
        tiny(),
        input=replace(tiny().input, short_side=96),
        model=replace(tiny().model, num_classes=1),
        postprocess=PostprocessConfig(max_instances=20),
    )
    detector = PolarMask(config.model)
    torch.nn.init.normal_(detector.head.ray.weight, std=0.1)
    torch.nn.init.normal_(detector.head.class_logit.weight, std=0.2)
    torch.nn.init.constant_(detector.head.quality_logit.bias, 3.0)
    facts = {"data_commit": "c0ffee", "data_hash": "a.dir", "code_version": "v1", "note": note}
    save_model(folder, detector, ModelCard(config, (Category(1, "cell"),), facts, {}))
    return folder


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    coarse = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    pixels = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)
    image = cv2.imencode(".png", pixels)[1].tobytes()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        with ServingCluster(s3_server, image, stand_in=False, trial=True) as cluster:
            cluster.lead_here(patch)
            cluster.deploy(make_finding_model(folder / "first", seed=1, note="first"))
            yield cluster


class Clients:
    """Ask one after the other until the block ends; give what answered."""

    def __init__(self, cluster):
        self._cluster = cluster
        self.seen = []

    def __enter__(self):
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _ask(self):
        while not self._over.wait(0.1):
            try:
                self.seen.append(self._cluster.answering())
            except ServerError as error:
                self.seen.append(f"failed: {error}")


def test_a_model_that_finds_the_same_takes_over(cluster, tmp_path):
    before = cluster.registry.champion_version()
    with Clients(cluster) as clients:
        deployed = cluster.deploy(
            make_finding_model(tmp_path / "m", seed=1, note="retrained"), trial=COPIES
        )
    assert deployed.version != before
    assert deployed.trial["compared"] >= 15
    assert deployed.trial["agreement"] == 1
    assert deployed.trial["candidate"]["instances"] > 0
    assert set(clients.seen) <= {before, deployed.version}


def test_a_model_that_finds_other_things_stays_out(cluster, tmp_path):
    champion = cluster.registry.champion_version()
    model = make_finding_model(tmp_path / "m", seed=2, note="gone astray")
    with (
        Clients(cluster) as clients,
        pytest.raises(RollOutError, match="agrees too little") as caught,
    ):
        cluster.deploy(model, trial=COPIES)
    assert f"version {champion} serves as before" in str(caught.value)
    assert cluster.registry.champion_version() == champion
    assert set(clients.seen) == {champion}
