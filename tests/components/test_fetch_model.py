"""The init container as its own process against a real S3 server."""

import hashlib
import os
import subprocess
import sys

import boto3
import pytest

CONTENT = b"an archive" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URI = f"s3://polarmask/archives/{SHA256}.mar"


@pytest.fixture
def stored(s3_environment):
    boto3.client("s3").put_object(Bucket="polarmask", Key=f"archives/{SHA256}.mar", Body=CONTENT)


def fetch(out, uri=URI, sha256=SHA256, **environment):
    return subprocess.run(
        [sys.executable, "-m", "polarmask_components.deploy.fetch_model", "--out", str(out)],
        env={**os.environ, "MODEL_URI": uri, "MODEL_SHA256": sha256, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_archive_is_fetched_and_not_again_after_a_restart(stored, tmp_path):
    out = tmp_path / "models" / "model.mar"
    first = fetch(out)
    assert (first.returncode, first.stderr) == (0, "")
    assert URI in first.stdout
    assert out.read_bytes() == CONTENT
    again = fetch(out, AWS_ENDPOINT_URL="http://127.0.0.1:9")  # nobody is asked
    assert again.returncode == 0


def test_another_file_in_its_place_is_replaced(stored, tmp_path):
    out = tmp_path / "model.mar"
    out.write_bytes(b"the model before")
    assert fetch(out).returncode == 0
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({"uri": ""}, "no model was deployed here yet", id="nothing-deployed"),
        pytest.param({"uri": "https://host/model.mar"}, "s3://bucket/key", id="no-s3"),
        pytest.param({"uri": "s3://polarmask"}, "s3://bucket/key", id="no-key"),
        pytest.param({"sha256": "abc"}, "64 hex digits", id="no-digest"),
        pytest.param({"sha256": "0" * 64}, f"sha256 {SHA256}, not 0000", id="other-digest"),
        pytest.param({"uri": "s3://polarmask/none.mar"}, "does not exist", id="absent"),
        pytest.param({"uri": "s3://no-such-bucket/a.mar"}, "check that it exists", id="no-bucket"),
        pytest.param({"AWS_SECRET_ACCESS_KEY": "x"}, "credentials", id="wrong-key"),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "AWS_ENDPOINT_URL",
            id="no-store",
            marks=pytest.mark.slow,  # it waits for the retries
        ),
    ],
)
def test_what_cannot_be_fetched_is_explained_and_leaves_nothing(stored, tmp_path, options, reason):
    done = fetch(tmp_path / "models" / "model.mar", **options)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")  # retries are logged before
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_volume_that_cannot_be_written_is_named(stored, tmp_path):
    (tmp_path / "models").write_text("a file where a folder should be")
    done = fetch(tmp_path / "models" / "model.mar")
    assert done.returncode == 2
    assert "can't be written" in done.stderr
