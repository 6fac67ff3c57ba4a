"""One request with a limit of its whole time, which requests itself does not have.

A time-out of requests holds for each wait for data, not for their sum, and not for names.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import requests

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401  # whatever the body holds
        """Return the body's JSON.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self.body)


def post_within(
    seconds: float, session: requests.Session, url: str, body: bytes, headers: Mapping[str, str]
) -> Answer:
    """Send a request and return the whole answer.

    Raises:
        TimeoutError: After these seconds. The session is still busy: take another one.
        requests.RequestException: There is no answer.
    """
    outcome: SimpleQueue[Answer | Exception] = SimpleQueue()
    given_up = threading.Event()

    def post() -> None:
        try:
            with session.post(
                url,
                data=body,
                headers=dict(headers),
                timeout=seconds + 1,  # longer than the caller waits: it only ends this thread
                stream=True,
            ) as answer:
                chunks = []
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    if given_up.is_set():
                        return
                    chunks.append(chunk)
            content = b"".join(chunks)
            outcome.put(Answer(answer.status_code, answer.reason or "", answer.headers, content))
        except Exception as error:  # raised in the caller's thread instead
            outcome.put(error)

    threading.Thread(target=post, name="polarmask-client-post", daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None
    finally:
        given_up.set()
    if isinstance(result, Exception):
        raise result
    return result
