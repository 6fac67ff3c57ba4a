"""Names of container images: well formed, and of one version."""

import re

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?:(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/)?"
    rf"(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def problem_of_image(reference: str) -> str:
    """Return what is wrong with an image's name, or "".

    A name without tag and digest, or with the tag `latest`, means another image tomorrow.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found:
        return f"image {reference!r} is no image name; write registry/name:tag or name@sha256:..."
    if not found["digest"] and found["tag"] in (None, "latest"):
        return f"image {reference} names no version; add a tag other than latest, or a digest"
    return ""
