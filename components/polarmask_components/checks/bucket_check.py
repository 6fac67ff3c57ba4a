"""Does a place in object storage do what registry and training need? Tried with a probe."""

import uuid
from collections.abc import Iterator

from polarmask_components.storage.s3_objects import S3Objects


def problems_of_bucket(uri: str) -> Iterator[str]:
    """Yield what s3://bucket/prefix can't do: write, read, conditional writes, delete.

    Raises:
        StorageError: It can't be reached, or not be used at all.
    """
    objects = S3Objects.from_uri(uri, deadline_seconds=0)
    probe = f"preflight-{uuid.uuid4().hex}"
    objects.read(probe)  # before the bucket's first write, because some servers create it then
    objects.write(probe, b"probe", expected_tag=None)
    try:
        found = objects.read(probe)
        if found is None or not objects.write(probe, b"replaced", expected_tag=found[1]):
            yield (
                f"{uri}: the server refuses IfMatch with an object's own ETag {found and found[1]},"
                " so no model could be promoted; reach it without the proxy that changes ETags"
            )
        for condition, tag in (("IfNoneMatch", None), ("IfMatch", '"0123456789abcdef"')):
            if objects.write(probe, condition.encode(), expected_tag=tag):
                yield (
                    f"{uri}: the server ignores {condition} on PUT, so two runs could promote at "
                    "once; use one that honours it"
                )
    finally:
        objects.delete([probe])
