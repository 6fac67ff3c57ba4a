"""What leads boto3 and DVC to object storage: variables of the environment, as they read them.

AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3                               address; not for AWS itself
AWS_DEFAULT_REGION, AWS_REGION
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN         the last for temporary keys
AWS_CA_BUNDLE                                                       file of trusted authorities
POLARMASK_STORAGE_CA                                                the same as PEM text
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from polarmask_components.errors import StorageError

OWN_CA = "POLARMASK_STORAGE_CA"


def prepare_environment() -> None:
    """Translate the variables that boto3 and DVC don't read into those that they do.

    Raises:
        StorageError: AWS_CA_BUNDLE names no file.
    """
    # Kubernetes and other SDKs of AWS set AWS_REGION alone.
    if region := os.environ.get("AWS_REGION"):
        os.environ.setdefault("AWS_DEFAULT_REGION", region)
    # A Secret in the environment holds text, and both programs want a file.
    if os.environ.get(OWN_CA) and not os.environ.get("AWS_CA_BUNDLE"):
        folder = tempfile.mkdtemp(prefix="polarmask-ca-")  # readable for this user alone
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        bundle = Path(folder) / "ca.crt"
        bundle.write_text(os.environ[OWN_CA], encoding="ascii")
        os.environ["AWS_CA_BUNDLE"] = str(bundle)
    bundle_name = os.environ.get("AWS_CA_BUNDLE")
    if bundle_name and not Path(bundle_name).is_file():
        raise StorageError(
            f"AWS_CA_BUNDLE is {bundle_name[:60]!r}, and there is no such file; {OWN_CA} takes the "
            "certificate itself"
        )
