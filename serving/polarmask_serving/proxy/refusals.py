"""Errors that the proxy answers with: HTTP status, code and message."""

REFUSALS = {
    400: ("bad_request", "the request is malformed"),
    401: ("unauthorized", "send the header Authorization: Bearer TOKEN with a valid token"),
    404: ("not_found", "nothing is served here; POST an image to /predictions/MODEL"),
    405: ("method_not_allowed", "this address takes another method, see the header Allow"),
    408: ("request_timeout", "the request did not arrive in time; send it faster or smaller"),
    413: ("body_too_large", "the request is too large; send a smaller image"),
    417: ("expectation_failed", "of the header Expect only 100-continue is understood"),
    426: ("upgrade_required", "use HTTP/1.1 or HTTP/2"),
    431: ("headers_too_large", "the request's headers are too large"),
    500: ("prediction_failed", "the model failed on this request or took too long"),
    501: ("not_implemented", "the request uses something this server does not offer"),
    502: ("bad_gateway", "the model's server broke off its answer; try again"),
    503: ("overloaded", "too many requests wait, or no worker is ready; try again in a moment"),
    504: ("time_out", "the model took too long; try again, or send a smaller image"),
    507: ("out_of_memory", "the model ran out of memory on this request; send a smaller image"),
}
"""By status. TorchServe's own texts name its settings or nothing at all."""

UNCHECKED = (
    503,
    "authentication_unavailable",
    "the server can't read its tokens or check the request; tell its administrator",
)
"""Of a request that `proxy.lua` could not check."""


def body_of(status: int) -> dict[str, dict[str, str]]:
    """Return the JSON body for a status of `REFUSALS`."""
    return error_body(*REFUSALS[status])


def error_body(code: str, message: str) -> dict[str, dict[str, str]]:
    """Return the JSON body of a refusal."""
    return {"error": {"code": code, "message": message}}
