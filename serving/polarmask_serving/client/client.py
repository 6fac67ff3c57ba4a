"""Ask a server for instances, as the class that `polarmask.load` gives, too.

    client = Client("http://127.0.0.1:8080/predictions/polarmask", token="...")
    found = client.predict(Path("cells.png"), score_threshold=0.5)
    found.polygons, found.scores, found.masks()
    found.save("cells.csv")
    for each in client.predict_batch(sorted(Path("plate").glob("*.png"))):
        ...

Needs requests, numpy, and for arrays as images Pillow; what masks and files need is imported when
they are asked for. No torch. What can go wrong:

ClientError (a ServingError)
    RefusedError            4xx: fix the request; `code` names the problem
        UnauthorizedError       401, 403: give a token, or another one
    UnavailableError        not reached, overloaded or too slow, after all retries: try later
    FaultyAnswerError       5xx, or no answer of a model: look at the address or the server's log
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Literal, Self, cast
from urllib.parse import SplitResult, unquote, urlsplit

import requests
from requests.auth import HTTPBasicAuth

from polarmask.inference.instances import Instances
from polarmask.system.redaction import redact
from polarmask_serving.client.post import Answer, post_within
from polarmask_serving.client.read_answer import read_instances
from polarmask_serving.client.upload import Category, Image, encode_categories, encode_image
from polarmask_serving.errors import ServingError

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
            /VERSION behind it for one version. A user and password in it are sent as such, and
            shown nowhere.
        token: Sent as bearer token.
        timeout: Seconds that a prediction may take: all tries, and the waits between them.
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
        parts = _split_address(url)
        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise ValueError("the token is empty or has characters that no header can carry")
        if token is not None and parts.username is not None:
            raise ValueError("the address has a password: give it or the token, not both")
        if retries < 0 or connections < 1 or not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError("retries >= 0, connections >= 1 and timeout > 0 are needed")
        self.url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._shown = redact(self.url)
        self._authorise = _authorisation(parts, token)
        self._timeout = timeout
        self._retries = retries
        self._connections = connections
        self._local = _is_loopback(parts.hostname or "")
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
        categories: Category | Sequence[Category] | None = None,
        return_rays: bool = False,
        tile: Literal["auto", "none"] = "auto",
    ) -> Instances:
        """Return what is in an image.

        Args:
            image: JPEG or PNG as bytes or as a file's path, or pixels, which travel as PNG.
            score_threshold: Leave out lower scores; None: those below the model's own.
            max_instances: At most so many, the best ones.
            categories: Ids or names of the only ones wanted, or one of them.
            return_rays: Fill `centers` and `ray_lengths`, too.
            tile: `none` shrinks images that would be cut into tiles, and loses small objects.

        Returns:
            The instances; `image` is what was given, unless that is bytes.

        Raises:
            ClientError: There is no prediction.
            OSError: The file can't be read.
            ValueError: The array is no image.
        """
        options = {
            "X-Score-Threshold": score_threshold,
            "X-Max-Instances": max_instances,
            "X-Categories": None if categories is None else encode_categories(categories),
            "X-Return-Rays": "true" if return_rays else None,
            "X-Tile": None if tile == "auto" else tile,
        }
        headers = {name: str(value) for name, value in options.items() if value is not None}
        headers["Content-Type"] = "application/octet-stream"
        answer = self._ask(encode_image(image), headers)
        try:
            return read_instances(answer.json(), image=image, min_score=score_threshold)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise FaultyAnswerError(
                f"{self._shown} answers something else than a prediction; write the address that "
                "the server names, such as http://127.0.0.1:8080/predictions/polarmask",
                status=answer.status,
            ) from error

    def predict_batch(
        self,
        images: Iterable[Image],
        *,
        score_threshold: float | None = None,
        max_instances: int | None = None,
        categories: Category | Sequence[Category] | None = None,
        return_rays: bool = False,
        tile: Literal["auto", "none"] = "auto",
    ) -> Iterator[Instances | ClientError]:
        """Yield what is in each image, in order; images are taken as they are needed.

        An image fails alone: its error takes the place of its prediction.

        Args:
            images: As for `predict`.
            score_threshold: As for `predict`; and so the others.
            max_instances: Likewise.
            categories: Likewise.
            return_rays: Likewise.
            tile: Likewise.

        Raises:
            OSError: A file can't be read.
            ValueError: An array is no image.
        """

        def predict(image: Image) -> Instances | ClientError:
            try:
                return self.predict(
                    image,
                    score_threshold=score_threshold,
                    max_instances=max_instances,
                    categories=categories,
                    return_rays=return_rays,
                    tile=tile,
                )
            except ClientError as error:
                return error

        pool = ThreadPoolExecutor(self._connections, thread_name_prefix="polarmask-client")
        under_way: deque[Future[Instances | ClientError]] = deque()
        try:
            for image in images:
                under_way.append(pool.submit(predict, image))
                if len(under_way) >= 2 * self._connections:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, body: bytes, headers: dict[str, str]) -> Answer:
        deadline = time.monotonic() + self._timeout
        for number in range(self._retries + 1):
            try:
                seconds = max(0.0, deadline - time.monotonic())
                answer = post_within(seconds, self._session(), self.url, body, headers)
            except TimeoutError as error:
                del self._of_thread.session  # still busy with this request
                # No retry: so is the server.
                raise UnavailableError(
                    f"{self._shown} gives no whole answer within {self._timeout:g} s"
                ) from error
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                text = redact(f"{self._shown} is not reached: {error}")
                failure: ClientError = UnavailableError(text)
                failure.__cause__ = error
                wait = 0.0
            except requests.RequestException as error:
                raise FaultyAnswerError(redact(f"{self._shown}: {error}")) from error
            else:
                if answer.status < 400:
                    return answer
                failure = _failure(self._shown, answer)
                if answer.status not in _RETRIED:
                    raise failure
                wait = _seconds_to_wait(answer)
            # Waits differ, so that clients refused together don't come back together.
            backoff = _FIRST_WAIT_SECONDS * 2**number * random.uniform(0.5, 1.5)  # noqa: S311  # no secret
            pause = wait + min(backoff, _LONGEST_WAIT_SECONDS)
            in_time = time.monotonic() + pause < deadline
            if number == self._retries or wait > _LONGEST_WAIT_SECONDS or not in_time:
                raise failure
            time.sleep(pause)
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


def _split_address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises if it is none
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts
    except ValueError:
        pass
    shown = "the address, with a password in it," if "@" in url else repr(url)
    raise ValueError(f"{shown} is no http address of predictions")


def _authorisation(
    parts: SplitResult, token: str | None
) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    if parts.username is not None:
        return HTTPBasicAuth(
            unquote(parts.username).encode(), unquote(parts.password or "").encode()
        )

    def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorise


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _failure(url: str, answer: Answer) -> ClientError:
    status = answer.status
    code, message = _reason(answer)
    text = f"{url} answers {status}{f' {code}' if code else ''}: {message}"
    if status in {401, 403}:
        return UnauthorizedError(text, status=status, code=code)
    if status in {408, 429, 502, 503, 504}:
        return UnavailableError(text, status=status, code=code)
    kind = RefusedError if 400 <= status < 500 else FaultyAnswerError
    return kind(text, status=status, code=code)


def _reason(answer: Answer) -> tuple[str, str]:
    """Return code and message of our errors, or the text of whatever else answers."""
    try:
        error = cast(dict[str, Any], answer.json())["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        text = answer.body.decode(errors="replace").strip()
        return "", (text or answer.reason or "no reason given")[:300]


def _seconds_to_wait(answer: Answer) -> float:
    """Read Retry-After: seconds or a date; 0 without it."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
