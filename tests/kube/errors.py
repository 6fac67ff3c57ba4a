"""Errors of the API server."""


class ApiError(Exception):
    """A refusal: HTTP status, Kubernetes' reason, and a message."""

    def __init__(self, status, reason, message):
        super().__init__(message)
        self.status = status
        self.reason = reason

    def body(self):
        """Return the Status object that clients parse."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.status,
        }


def not_found(kind, name):
    return ApiError(404, "NotFound", f'{kind.resource} "{name}" not found')


def conflict(kind, name, why=None):
    why = why or (
        "the object has been modified; please apply your changes to the latest version and "
        "try again"
    )
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
    return ApiError(409, "Conflict", message)


def invalid(kind, name, problems):
    message = f'{kind.name} "{name}" is invalid: ' + "; ".join(problems)
    return ApiError(422, "Invalid", message)
