"""Exceptions, and who fixes what.

ServingError
    AnswerError                 an image gets an error instead of instances
        RequestError            the client's fault: 4xx
            EmptyRequestError       400 empty_request    send an image
            DamagedImageError       400 damaged_image    send the whole file
            CostlyImageError        400 costly_image     save it in the usual way
            BadFormError            400 bad_form         fix the form
            BadJsonError            400 bad_json         fix the JSON
            BadOptionError          400 bad_option       fix the option
            ImageTooLargeError      413 image_too_large  send a smaller image
            TooManyTilesError       413 too_many_tiles   send it in parts, or with tile=none
            AnswerTooLargeError     413 answer_too_large ask for fewer instances, or no masks
            NotAnImageError         415 not_an_image     send JPEG or PNG
        PredictionError         500 prediction_failed    our fault: look at the server's log
        TimeOutError            504 time_out             send fewer or smaller images
    ArchiveError                the .mar can't be built or read
    ServerError                 a server won't start, answer or stop
        PortTakenError          another program listens there: choose another port
"""

from http import HTTPStatus
from typing import ClassVar


class ServingError(Exception):
    """Base of everything this package raises on purpose."""


class AnswerError(ServingError):
    """One image gets `{"error": {"code", "message"}}` and this HTTP status as its answer."""

    status: ClassVar[int]
    code: ClassVar[str]

    @property
    def phrase(self) -> str:
        """Reason phrase of the status line; ASCII, because TorchServe counts its characters."""
        return HTTPStatus(self.status).phrase


class RequestError(AnswerError):
    """The client sent something that can't be answered."""


class EmptyRequestError(RequestError):
    """The request holds no image."""

    status = 400
    code = "empty_request"


class DamagedImageError(RequestError):
    """The bytes begin like an image and can't be decoded."""

    status = 400
    code = "damaged_image"


class CostlyImageError(RequestError):
    """Decoding the image would take much longer than its pixels need: scans, segments, chunks."""

    status = 400
    code = "costly_image"


class ImageTooLargeError(RequestError):
    """The image, or the images of one request together, have too many pixels."""

    status = 413
    code = "image_too_large"


class TooManyTilesError(RequestError):
    """The images of one request would be cut into too many tiles for one answer."""

    status = 413
    code = "too_many_tiles"


class AnswerTooLargeError(RequestError):
    """The answer would have more bytes than the server sends; ask for fewer instances."""

    status = 413
    code = "answer_too_large"


class NotAnImageError(RequestError):
    """The bytes are neither JPEG nor PNG."""

    status = 415
    code = "not_an_image"


class BadFormError(RequestError):
    """The form can't be read, or has a field twice."""

    status = 400
    code = "bad_form"


class BadJsonError(RequestError):
    """The JSON can't be read or isn't of the expected form."""

    status = 400
    code = "bad_json"


class BadOptionError(RequestError):
    """An option is unknown or out of range."""

    status = 400
    code = "bad_option"


class PredictionError(AnswerError):
    """The model failed on this image."""

    status = 500
    code = "prediction_failed"


class TimeOutError(AnswerError):
    """The network took too long for the images of this request."""

    status = 504
    code = "time_out"


class ArchiveError(ServingError):
    """A model archive can't be built or read."""


class ServerError(ServingError):
    """A server won't start, answer or stop."""


class PortTakenError(ServerError):
    """Another program listens on a port of the server."""
