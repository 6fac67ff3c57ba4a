"""Addresses of object storage. Other kinds that Kubeflow Pipelines takes are refused by name."""

from polarmask_components.errors import StorageError

_OTHERS = {
    "minio": "minio:// is where Kubeflow keeps artifacts, with keys (Secret "
    "mlpipeline-minio-artifact) that only Kubeflow's steps have",
    "gs": "gs:// speaks another protocol than S3",
}
_QUERY = (
    "what Kubeflow reads behind ? (endpoint, region, disableSSL) belongs into the Secret with the "
    "keys, as AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
)


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`; the key may be "".

    Raises:
        StorageError: It is something else.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    has_query = "?" in rest
    if scheme != "s3" or not bucket or has_query:
        reason = _OTHERS.get(scheme, _QUERY if has_query else "") if separator else ""
        raise StorageError(
            f"{uri!r} is no place in object storage{reason and f': {reason}'}; write "
            "s3://bucket/prefix"
        )
    return bucket, key.strip("/")
