"""A model with a backbone of timm is packed and served like any other."""

from dataclasses import replace

import numpy as np
import pytest
import requests
import torch

from polarmask.inference.model_folder import ModelCard, load_model, read_card, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask
from polarmask_serving.archive.build import build_archive
from polarmask_serving.local_pod import LocalPod


@pytest.fixture
def timm_model(random_model, tmp_path):
    """The random model with another backbone, under the same head."""
    card = read_card(random_model)
    model = replace(card.config.model, backbone="timm/mobilenetv4_conv_small_050")
    torch.manual_seed(0)
    detector = PolarMask(model)
    detector.head.load_state_dict(load_model(random_model)[0].head.state_dict())
    folder = tmp_path / "timm" / "model"
    save_model(folder, detector, ModelCard(replace(card.config, model=model), card.categories))
    return folder


@pytest.mark.slow
def test_a_server_answers_what_the_model_finds(timm_model, picture, png, tmp_path):
    archive = build_archive(timm_model, tmp_path / "m.mar", name="polarmask", version="1")
    pod = LocalPod.start(archive, tmp_path / "pod")
    try:
        answer = requests.post(pod.url, data=png, timeout=60).json()
    finally:
        pod.stop()
    (expected,) = Predictor.load(timm_model).predict([picture])
    assert len(expected.scores) > 0
    scores = [each["score"] for each in answer["instances"]]
    shown = expected.scores[expected.scores >= read_card(timm_model).min_score]
    np.testing.assert_allclose(scores, shown, atol=1e-3)
