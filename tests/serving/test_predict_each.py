import numpy as np
import pytest

from polarmask.inference import Predictor
from polarmask_serving.batch import predict_each
from polarmask_serving.errors import NotAnImageError, PredictionError


@pytest.fixture(scope="module")
def predictor(random_model):
    return Predictor.load(random_model, threads=1)


class Picky:
    """Fails, as a model may, on every batch that holds a black image."""

    def __init__(self):
        self.batches = []

    def predict(self, images):
        self.batches.append([image.shape for image in images])
        if any(image.max() == 0 for image in images):
            raise RuntimeError("black")
        return [image.max() for image in images]


def test_answers_keep_the_order_of_images_and_errors(predictor, picture):
    refusal = NotAnImageError("no")
    images = [picture, refusal, picture[:64, :64], picture]
    answers = predict_each(predictor, images)
    assert answers[1] is refusal
    assert [answer.image_hw for answer in answers if answer is not refusal] == [
        (120, 200),
        (64, 64),
        (120, 200),
    ]


def test_an_answer_does_not_depend_on_the_neighbours(predictor, picture):
    small = picture[:64, 20:84]
    (alone,) = predict_each(predictor, [small])
    beside = predict_each(predictor, [picture, small, picture])[1]
    # 1e-3: sums of other batch sizes round differently in float32.
    np.testing.assert_allclose(beside.polygons, alone.polygons, atol=1e-3)
    np.testing.assert_allclose(beside.scores, alone.scores, atol=1e-5)


def test_an_image_the_model_fails_on_harms_no_other():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    first, second, third = predict_each(Picky(), [white, black, white])
    assert (first, third) == (255, 255)
    assert isinstance(second, PredictionError)
    assert "RuntimeError" in str(second)


def test_only_images_of_equal_size_share_a_batch():
    picky = Picky()
    sizes = [(8, 8), (4, 8), (8, 8)]
    predict_each(picky, [np.ones((*size, 3), np.uint8) for size in sizes])
    assert picky.batches == [[(8, 8, 3), (8, 8, 3)], [(4, 8, 3)]]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_the_smallest_images_get_an_answer(predictor, size):
    (answer,) = predict_each(predictor, [np.full((*size, 3), 90, np.uint8)])
    assert answer.image_hw == size
