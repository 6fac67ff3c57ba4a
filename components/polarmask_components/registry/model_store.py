"""Where serving pods find archives: beside the registry, named by their content.

archives/SHA256.mar     written once and never again, so a pod that restarts after a year
                        serves the same bytes
"""

from polarmask_components.errors import RegistryError
from polarmask_components.registry.registry import Registry
from polarmask_components.registry.s3 import S3Objects
from polarmask_serving.archive.read import Archive


def store_archive(archive: Archive, registry: Registry) -> str:
    """Store an archive beside the models of a registry; return its URI.

    Raises:
        RegistryError: The registry lies where pods can't read, or can't be written.
        UnusableModelError: What is stored under its name is not this archive.
    """
    if not registry.where.startswith("s3://"):
        raise RegistryError(
            f"pods of a cluster can't read {registry.where}; give deploy_registry=s3://bucket/prefix"
        )
    name = f"archives/{archive.sha256}.mar"
    S3Objects.from_uri(registry.where).upload_once(name, archive.path)
    return f"{registry.where}/{name}"
