"""What `polarmask predict --url` asks: a server in place of a model of this machine."""

from collections.abc import Sequence

import numpy as np

from polarmask.data.images import Pixels
from polarmask.errors import DataError, ServerError
from polarmask.inference.instances import Instances
from polarmask_serving.client import Client, ClientError
from polarmask_serving.client.prediction import Prediction

_OF_ONE_IMAGE = {400, 413, 415, 422, 500, 504}
"""HTTP status of answers after which another image may well get a prediction."""


class ServerFinder:
    """Finds instances by asking a server, with no threshold but the model's own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def max_instances(self, image_hw: tuple[int, int]) -> None:
        """Return None: the server does not report the model's limit."""

    def predict(self, images: Sequence[Pixels]) -> list[Instances]:
        """Return what is in each (H, W, 3) uint8 or uint16 RGB image.

        Raises:
            DataError: The server refuses an image or fails on it, or no PNG can hold it.
            ServerError: It can't be reached, wants another token, or is no such server.
        """
        try:
            return [
                instances_of(self._client.predict(image, score_threshold=0, return_rays=True))
                for image in images
            ]
        except ClientError as error:
            kind = DataError if error.status in _OF_ONE_IMAGE else ServerError
            raise kind(str(error)) from error
        except ValueError as error:
            raise DataError(str(error)) from error


def open_http(url: str, *, token: str | None) -> ServerFinder:
    """Open a server by the URL of its predictions; the entry point `http` of `polarmask.clients`.

    Raises:
        DataError: The address or the token can't be one.
    """
    try:
        return ServerFinder(Client(url, token=token))
    except ValueError as error:
        raise DataError(str(error)) from error


def instances_of(prediction: Prediction) -> Instances:
    """Turn a client's arrays into those of the model; centres are NaN where none were asked for."""
    number = len(prediction)
    centers, rays = prediction.centers, prediction.ray_lengths
    return Instances(
        image_hw=prediction.image_hw,
        polygons=prediction.polygons,
        boxes_xywh=prediction.boxes_xywh,
        scores=prediction.scores,
        category_ids=prediction.category_ids,
        category_names=prediction.categories,
        centers=np.full((number, 2), np.nan, np.float32) if centers is None else centers,
        ray_lengths=np.zeros((number, 0), np.float32) if rays is None else rays,
        further_parts=prediction.further_parts,
    )
