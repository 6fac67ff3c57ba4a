"""What goes wrong inside the pods of a training job: each test breaks one thing of their world.

The pods run what they run on a cluster; the object storage is a real one.
"""

import hashlib
import logging

import boto3
import pytest
from botocore.exceptions import ClientError

from polarmask_components.cluster.connection import connect
from polarmask_components.errors import LaunchError, StorageError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.training.artifacts import TrainingOutputs
from polarmask_components.training.cluster_training import train_on_cluster
from polarmask_components.training.job_launcher import Pace, run_job
from polarmask_components.training.job_storage import JobStorage
from s3_server import client_of
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
    job = training_job(
        name=NAME,
        job=JobSettings(cpu="1", memory="1Gi", disk="1Gi", max_restarts=1),
        storage=f"s3://{BUCKET}/{place}/training",
    )
    storage_of(job).store_inputs({name: tmp_path / name for name in ("data", "labels")})
    return job


def storage_of(job):
    return JobStorage(job.request.storage, job.name)


def input_of(place, name):
    """Return the key of the one file of an input."""
    return f"{place}/training/inputs/{hashlib.sha256(f'some {name}'.encode()).hexdigest()}"


def failure_of(job):
    with pytest.raises(LaunchError) as caught:
        run_job(job, storage_of(job), connect(), pace=PACE)
    return str(caught.value)


def test_t34_input_that_changed_in_storage_is_refused_by_name(job, place):
    boto3.client("s3").put_object(Bucket=BUCKET, Key=input_of(place, "data"), Body=b"another")
    message = failure_of(job)
    assert f"{input_of(place, 'data')} is not what was stored: 7 bytes" in message
    assert "ended with exit code 1" in message


def test_t35_input_that_is_gone_is_named(job, place):
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=input_of(place, "labels"))
    message = failure_of(job)
    assert f"{input_of(place, 'labels')} does not exist; delete it if it is there" in message


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


def test_t38_bucket_that_is_not_there_is_reported(job, tmp_path):
    with pytest.raises(StorageError, match=r"NoSuchBucket"):
        JobStorage("s3://no-such-bucket/training", NAME).fetch_inputs(tmp_path)


def test_t39_data_that_is_no_coco_folder_ends_the_job_at_the_first_try(job):
    message = failure_of(job)
    assert "another try would not help" in message
    assert NO_COCO in message


NO_COCO = "data/images does not exist; a data folder holds images/ and annotations/"


def test_t40_pods_need_no_keys_of_kubeflow_s_own_store(
    job, place, kubeflow_store, s3_environment, tmp_path, caplog
):
    """Steps get minio://mlpipeline/... from Kubeflow's launcher; pods of jobs can't read there."""
    kubeflow = client_of(kubeflow_store)
    where = {"Bucket": "mlpipeline", "Key": f"v2/artifacts/{place}/data/file"}
    kubeflow.put_object(**where, Body=b"of another step")
    keys = {"AWS_ENDPOINT_URL": kubeflow_store["AWS_ENDPOINT_URL"]}
    with pytest.raises(ClientError, match=r"InvalidAccessKeyId|AccessDenied"):
        client_of({**s3_environment, **keys}).get_object(**where)

    kubeflow.download_file(*where.values(), str(tmp_path / "data" / "file"))
    caplog.set_level(logging.INFO)
    inputs = {name: tmp_path / name for name in ("data", "labels")}
    outputs = TrainingOutputs(model=tmp_path / "model", run=tmp_path / "run")
    for run_id in ("first", "second"):
        caplog.clear()
        with pytest.raises(LaunchError, match=NO_COCO):  # so the pod has fetched both
            train_on_cluster(
                *(job.request,), **inputs, flags=[], outputs=outputs, run_id=run_id, pace=PACE
            )
    assert "0 of 0 files" in caplog.text  # the first run stored what the second one needs
