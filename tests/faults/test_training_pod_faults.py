"""What goes wrong inside the pods of a training job: each test breaks one thing of their world.

The pods run what they run on a cluster; the object storage is a real one.
"""

import boto3
import pytest

from polarmask_components.cluster.connection import connect
from polarmask_components.errors import LaunchError, StorageError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.storage.manifest import manifest_of
from polarmask_components.storage.s3_objects import S3Objects
from polarmask_components.storage.transfer import upload_files
from polarmask_components.training.job_launcher import Pace, run_job
from polarmask_components.training.job_storage import JobStorage
from training_jobs import training_job

PACE = Pace(look=0.1, stuck=1.0, removal=20.0)
NAME = "polarmask-train-0123456789"
BUCKET = "polarmask"

pytestmark = pytest.mark.faults


@pytest.fixture
def place(s3_environment, request):
    return f"{request.node.name}"


@pytest.fixture
def job(cluster, s3_environment, place, tmp_path):
    """A job of one node whose inputs are in storage; small, and no COCO."""
    secret = {"metadata": {"name": "polarmask-s3"}, "stringData": dict(s3_environment)}
    cluster.server.create("Secret", secret)
    for name in ("data", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"some {name}")
        remote = S3Objects.from_uri(f"s3://{BUCKET}/{place}/{name}")
        upload_files(remote, {"file": tmp_path / name / "file"}, what=name)
    job = training_job(
        name=NAME,
        job=JobSettings(cpu="1", memory="1Gi", disk="1Gi", max_restarts=1),
        data=f"s3://{BUCKET}/{place}/data",
        labels=f"s3://{BUCKET}/{place}/labels",
        storage=f"s3://{BUCKET}/{place}/training",
    )
    manifests = {name: manifest_of(tmp_path / name) for name in ("data", "labels")}
    storage_of(job).write_inputs(manifests)
    return job


def storage_of(job):
    return JobStorage(job.request.storage, job.name)


def failure_of(job):
    with pytest.raises(LaunchError) as caught:
        run_job(job, storage_of(job), connect(), pace=PACE)
    return str(caught.value)


def test_t34_input_that_changed_in_storage_is_refused_by_name(job, place):
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{place}/data/file", Body=b"another")
    message = failure_of(job)
    assert "file is not what was stored: 7 bytes" in message
    assert "ended with exit code 1" in message


def test_t35_input_that_is_gone_is_named(job, place):
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"{place}/labels/file")
    assert "labels/file does not exist; run the step that wrote it again" in failure_of(job)


def test_t36_list_of_inputs_that_is_gone_is_named(job, place):
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"{place}/training/{NAME}/inputs.json")
    assert "holds no inputs.json; start the train step again" in failure_of(job)


def test_t37_storage_key_that_is_not_accepted_is_reported(job, cluster):
    def spoil(secret):
        secret["stringData"] = {"AWS_SECRET_ACCESS_KEY": "wrong"}

    cluster.server.update("Secret", "polarmask-s3", spoil)
    message = failure_of(job)
    assert "SignatureDoesNotMatch" in message
    assert "credentials in the environment" in message


def test_t38_bucket_that_is_not_there_is_reported(job):
    with pytest.raises(StorageError, match=r"NoSuchBucket"):
        JobStorage("s3://no-such-bucket/training", NAME).inputs()


def test_t39_data_that_is_no_coco_folder_ends_the_job_at_the_first_try(job):
    message = failure_of(job)
    assert "another try would not help" in message
    assert "data/images does not exist; a data folder holds images/ and annotations/" in message
