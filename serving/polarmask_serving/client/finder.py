"""What `polarmask predict --url` asks: a server in place of a model of this machine."""

from typing import TYPE_CHECKING, Literal

from polarmask.errors import DataError, ServerError
from polarmask.inference.instances import Instances
from polarmask_serving.client import Client, ClientError

if TYPE_CHECKING:
    from polarmask.data.images import Pixels

_OF_ONE_IMAGE = {400, 413, 415, 422, 500, 504}
"""HTTP status of answers after which another image may well get a prediction."""


class ServerFinder:
    """Finds instances by asking a server."""

    def __init__(self, client: Client, *, in_tiles: bool = True) -> None:
        self._client = client
        self._tile: Literal["auto", "none"] = "auto" if in_tiles else "none"

    def find(self, image: "Pixels", min_score: float | None = None) -> Instances:
        """Return what is in an (H, W, 3) uint8 or uint16 RGB image.

        Args:
            image: The image.
            min_score: Lowest score, in [0, 1]; None leaves it to the model.

        Raises:
            DataError: The server refuses an image or fails on it, or no PNG can hold it.
            ServerError: It can't be reached, wants another token, or is no such server.
        """
        try:
            return self._client.predict(
                image, score_threshold=min_score, return_rays=True, tile=self._tile
            )
        except ClientError as error:
            kind = DataError if error.status in _OF_ONE_IMAGE else ServerError
            raise kind(str(error)) from error
        except ValueError as error:
            raise DataError(str(error)) from error


def open_http(url: str, *, token: str | None, in_tiles: bool = True) -> ServerFinder:
    """Open a server by the URL of its predictions; the entry point `http` of `polarmask.clients`.

    Raises:
        DataError: The address or the token can't be one.
    """
    try:
        return ServerFinder(Client(url, token=token), in_tiles=in_tiles)
    except ValueError as error:
        raise DataError(str(error)) from error
