"""Ask a server for instances: polygons, boxes, scores and masks as numpy arrays.

    client = Client("http://127.0.0.1:8080/predictions/polarmask", token="...")
    found = client.predict(Path("cells.png"), score_threshold=0.5)
    found.polygons, found.scores, found.masks()
    for each in client.predict_batch(sorted(Path("plate").glob("*.png"))):
        ...

Needs requests, numpy, and for arrays as images Pillow. What can go wrong:

ClientError (a ServingError)
    RefusedError            4xx: fix the request; `code` names the problem
        UnauthorizedError       401, 403: give a token, or another one
    UnavailableError        not reached, overloaded or too slow, after all retries: try later
    FaultyAnswerError       5xx, or no answer of a model: look at the address or the server's log
"""

import json
import random
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray

from polarmask_serving.client.prediction import Prediction, read_prediction
from polarmask_serving.errors import ServingError

Image = bytes | Path | NDArray[np.generic]
"""A file's content, a file, or pixels: (H, W, 3) RGB or (H, W) grey, uint8 or uint16."""

_RETRIED = {429, 502, 503}  # not 504: the server may still be busy with what it did not answer
_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 30.0


class ClientError(ServingError):
    """A server gave no prediction.

    Attributes:
        status: Of the HTTP answer; None if there was none.
        code: The server's code of the problem; empty if it gave none.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RefusedError(ClientError):
    """The server does not take the request: fix it."""


class UnauthorizedError(RefusedError):
    """The server wants a token, or another one."""


class UnavailableError(ClientError):
    """The server is not reached, overloaded or too slow: try later."""


class FaultyAnswerError(ClientError):
    """What answers is no working model."""


class Client:
    """Asks one model of one server; may be used by several threads.

    Args:
        url: Of the predictions, such as http://127.0.0.1:8080/predictions/polarmask, with
            /VERSION behind it for one version.
        token: Sent as bearer token.
        timeout: Seconds that one try may take.
        retries: Further tries when the server can't be reached or is overloaded. Asking twice
            for a prediction does no harm.
        connections: How many images of a batch are under way at a time.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 60,
        retries: int = 4,
        connections: int = 4,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is no http address of predictions")
        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise ValueError("the token is empty or has characters that no header can carry")
        if retries < 0 or connections < 1 or timeout <= 0:
            raise ValueError("retries >= 0, connections >= 1 and timeout > 0 are needed")
        self.url = url
        self._token = token
        self._timeout = timeout
        self._retries = retries
        self._connections = connections
        self._local = _is_loopback(parts.hostname)
        self._of_thread = threading.local()
        self._sessions: list[requests.Session] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        for session in self._sessions:
            session.close()

    def predict(
        self,
        image: Image,
        *,
        score_threshold: float | None = None,
        max_instances: int | None = None,
        categories: Sequence[int | str] | None = None,
        return_rays: bool = False,
    ) -> Prediction:
        """Return what is in an image.

        Args:
            image: JPEG or PNG as bytes or file, or pixels, which travel as PNG.
            score_threshold: Leave out lower scores; None: the server's default.
            max_instances: At most so many, the best ones.
            categories: Ids or names of the only ones wanted.
            return_rays: Fill `centers` and `ray_lengths`, too.

        Raises:
            ClientError: There is no prediction.
            OSError: The file can't be read.
            ValueError: The array is no image.
        """
        options = {
            "X-Score-Threshold": score_threshold,
            "X-Max-Instances": max_instances,
            "X-Categories": None if categories is None else _json_list(categories),
            "X-Return-Rays": "true" if return_rays else None,
        }
        headers = {name: str(value) for name, value in options.items() if value is not None}
        answer = self._ask(_encode(image), headers | {"Content-Type": "application/octet-stream"})
        try:
            return read_prediction(answer.json())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise FaultyAnswerError(
                f"{self.url} answers something else than a prediction; write the address that the "
                "server names, such as http://127.0.0.1:8080/predictions/polarmask",
                status=answer.status_code,
            ) from error

    def predict_batch(
        self,
        images: Iterable[Image],
        *,
        score_threshold: float | None = None,
        max_instances: int | None = None,
        categories: Sequence[int | str] | None = None,
        return_rays: bool = False,
    ) -> Iterator[Prediction | ClientError]:
        """Yield what is in each image, in order; images are taken as they are needed.

        An image fails alone: its error takes the place of its prediction.

        Args:
            images: As for `predict`.
            score_threshold: As for `predict`; and so the others.
            max_instances: Likewise.
            categories: Likewise.
            return_rays: Likewise.

        Raises:
            OSError: A file can't be read.
            ValueError: An array is no image.
        """

        def predict(image: Image) -> Prediction | ClientError:
            try:
                return self.predict(
                    image,
                    score_threshold=score_threshold,
                    max_instances=max_instances,
                    categories=categories,
                    return_rays=return_rays,
                )
            except ClientError as error:
                return error

        pool = ThreadPoolExecutor(self._connections, thread_name_prefix="polarmask-client")
        under_way: deque[Future[Prediction | ClientError]] = deque()
        try:
            for image in images:
                under_way.append(pool.submit(predict, image))
                if len(under_way) >= 2 * self._connections:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, body: bytes, headers: dict[str, str]) -> requests.Response:
        for number in range(self._retries + 1):
            try:
                answer = self._session().post(
                    self.url, data=body, headers=headers, timeout=self._timeout
                )
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                failure: ClientError = UnavailableError(f"{self.url} is not reached: {error}")
                failure.__cause__ = error
                wait = 0.0
            except requests.Timeout as error:
                # No retry: the server is still busy with the request that timed out.
                raise UnavailableError(
                    f"{self.url} gives no answer within {self._timeout:g} s"
                ) from error
            except requests.RequestException as error:
                raise FaultyAnswerError(f"{self.url}: {error}") from error
            else:
                if answer.ok:
                    return answer
                failure = _failure(self.url, answer)
                if answer.status_code not in _RETRIED:
                    raise failure
                wait = _seconds_to_wait(answer)
            if number == self._retries or wait > _LONGEST_WAIT_SECONDS:
                raise failure
            # Waits differ, so that clients refused together don't come back together.
            backoff = _FIRST_WAIT_SECONDS * 2**number * random.uniform(0.5, 1.5)  # noqa: S311  # no secret
            time.sleep(wait + min(backoff, _LONGEST_WAIT_SECONDS))
        raise AssertionError("the last try returns or raises")

    def _session(self) -> requests.Session:
        """Return this thread's connection."""
        session: requests.Session | None = getattr(self._of_thread, "session", None)
        if session is None:
            session = requests.Session()
            # A proxy of the environment can't reach our loopback.
            session.trust_env = not self._local
            # As auth, so that no netrc can put another one in its place.
            session.auth = self._authorise
            self._of_thread.session = session
            self._sessions.append(session)
        return session

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _json_list(categories: Sequence[int | str]) -> str:
    """Write JSON, as names may hold commas; ASCII, as headers need."""
    return json.dumps(list(categories))


def _encode(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    if (
        image.dtype not in (np.uint8, np.uint16)
        or image.ndim not in (2, 3)
        or image.shape[2:] not in ((), (3,))
    ):
        raise ValueError(
            "an image is uint8 or uint16, (H, W, 3) RGB or (H, W); "
            f"got {image.dtype}, {image.shape}"
        )
    if image.dtype == np.uint16:
        return _encode_deep(image)
    from PIL import Image as Pillow

    file = BytesIO()
    Pillow.fromarray(image).save(file, "PNG", compress_level=1)  # 1: quick
    return file.getvalue()


def _encode_deep(image: NDArray[np.generic]) -> bytes:
    """Write a PNG with 16 bits per channel, which Pillow can't for colours."""
    rows, columns = image.shape[:2]
    lines = image.astype(">u2", order="C").reshape(rows, -1).view(np.uint8)
    colour_type = 0 if image.ndim == 2 else 2
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", columns, rows, 16, colour_type, 0, 0, 0),
        # Each row begins with the number of its filter: none.
        b"IDAT": zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes(), level=1),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def _failure(url: str, answer: requests.Response) -> ClientError:
    status = answer.status_code
    code, message = _reason(answer)
    text = f"{url} answers {status}{f' {code}' if code else ''}: {message}"
    if status in {401, 403}:
        return UnauthorizedError(text, status=status, code=code)
    if status in {408, 429, 502, 503, 504}:
        return UnavailableError(text, status=status, code=code)
    kind = RefusedError if 400 <= status < 500 else FaultyAnswerError
    return kind(text, status=status, code=code)


def _reason(answer: requests.Response) -> tuple[str, str]:
    """Return code and message of our errors, or the text of whatever else answers."""
    try:
        error = cast(dict[str, Any], answer.json())["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "", (answer.text.strip() or answer.reason or "no reason given")[:300]


def _seconds_to_wait(answer: requests.Response) -> float:
    """Read Retry-After: seconds or a date; 0 without it."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
