"""Each image is built, looked into, and does its work once."""

import ast
import json
import os
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from data_repository import make_data_repository
from factories import make_tiny_coco

pytestmark = pytest.mark.images

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipelines" / "compiled" / "train_and_deploy.yaml"
EXECUTORS = yaml.safe_load(PIPELINE.read_text().split("\n---\n")[0])["deploymentSpec"]["executors"]
IMAGES = ("ops", "trainer", "serving")
TOOLS = "gcc cc g++ c++ clang ld as make cmake pip pip3 uv"
GIBIBYTE = 2**30
# An address of this machine that nothing else listens on.
POD_IP = "127.77.0.1"


@pytest.fixture
def shared(tmp_path):
    """A folder that the user of the images may write to."""
    give_away(tmp_path)
    return tmp_path


def give_away(folder):
    """Let the user of the images own a folder and what is in it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_special_and_holds_no_tool_that_builds(image, run):
    found = run(image, "sh", "-c", f"id -u; id -g; command -v {TOOLS} || true")
    assert found.split() == ["1000", "1000"]


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_of_the_builder_stays_in_an_image(image, images, base, docker, run):
    """Neither its caches, nor its certificates, nor where its packages came from."""
    caches = ("find", "/", "-xdev", "(", "-name", "*.whl", "-o", "-path", "*/.cache/*", ")")
    left = set(run(image, *caches, check=False).splitlines())
    assert {each for each in left if "Permission denied" not in each} <= set(
        docker("run", "--rm", base, *caches, check=False).splitlines()
    )
    certificates = ("sha256sum", "/etc/ssl/certs/ca-certificates.crt")
    assert run(image, *certificates) == docker("run", "--rm", base, *certificates)
    metadata = docker("image", "inspect", images[image])
    metadata += docker("history", "--no-trunc", images[image])
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "SSL_CERT_FILE", "PIP_CONFIG_FILE"):
        assert os.environ.get(name, "unset") not in metadata


def test_sizes(images, docker, capsys):
    """Printed for those who plan disks; ops has to stay small enough to start in seconds."""
    size = {
        target: int(docker("image", "inspect", "--format={{.Size}}", name)) / GIBIBYTE
        for target, name in images.items()
    }
    with capsys.disabled():
        sys.stdout.writelines(f"\n{target}: {size[target]:.2f} GiB" for target in size)
    assert size["ops"] < 1
    assert size["serving"] < size["trainer"]


def imports_of_a_step(executor):
    """Return the modules that a compiled step imports when it runs."""
    *_, source = executor["container"]["command"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("name", EXECUTORS)
def test_the_image_of_a_step_holds_all_that_the_step_imports(name, run):
    executor = EXECUTORS[name]
    image = executor["container"]["image"].partition(":")[0].removeprefix("polarmask-")
    modules = sorted(set(imports_of_a_step(executor)))
    assert "kfp" in modules
    run(image, "python", "-c", "\n".join(f"import {module}" for module in modules))


@pytest.fixture
def run_step(run, shared):
    """Run a compiled step as Kubeflow's launcher does: its own command, values as JSON.

    Artifacts lie below the folder `shared`, as the launcher mounts them.
    """

    def run_step(name, values, outputs=(), *, mounts=()):
        container = EXECUTORS[f"exec-{name}"]["container"]
        image = container["image"].partition(":")[0].removeprefix("polarmask-")
        artifacts = {
            output: {
                "artifacts": [{"type": {"schemaTitle": kind}, "uri": f"minio://bucket/{output}"}]
            }
            for output, kind in outputs
        }
        executor_input = {
            "inputs": {"parameterValues": values},
            "outputs": {"artifacts": artifacts, "outputFile": "/minio/output.json"},
        }
        arguments = [json.dumps(executor_input) if a == "{{$}}" else a for a in container["args"]]
        run(image, *container["command"], *arguments, mounts=[f"{shared}:/minio", *mounts])
        return json.loads((shared / "output.json").read_text()).get("parameterValues")

    return run_step


def test_a_compiled_step_executes_in_the_image_of_ops(run_step, shared):
    values = {"mask_ap": 0.3, "floor_ap": 0.25, "champion_ap": 0.4, "champion_reason": "measured"}
    output = run_step("gate-model", values, [("verdict", "system.Markdown")])
    assert output == {"Output": False}
    assert "measured" in (shared / "bucket" / "verdict").read_text()


def test_data_is_found_by_ops_and_fetched_by_the_trainer(run_step, shared, tmp_path_factory):
    """git and DVC work where nothing but /tmp can be written."""
    folder = make_data_repository(tmp_path_factory.mktemp("repository"))
    give_away(folder)
    repository, mounts = "file:///repository", [f"{folder}:/repository:ro"]
    asked = {"repository": repository, "revision": "v1"}
    found = run_step("resolve-data", asked, mounts=mounts)
    ingested = [("dataset", "system.Dataset"), ("page", "system.HTML")]
    run_step("ingest-coco", {"repository": repository, **found}, ingested, mounts=mounts)
    assert len(list((shared / "bucket" / "dataset" / "images").iterdir())) == 12


def test_all_images_hold_the_same_code(run):
    """Results are kept by the code's version: one image finds it, another one computes."""
    module = "polarmask_components.provenance.code_version"
    ask = f"from {module} import code_version; print(code_version())"
    assert len({run(image, "python", "-c", ask) for image in IMAGES}) == 1


@pytest.fixture(scope="module")
def archive(run, tmp_path_factory):
    """A model trained and packed in the trainer image."""
    work = tmp_path_factory.mktemp("work")
    make_tiny_coco(work / "data")
    give_away(work)

    def polarmask(*command):
        return run("trainer", *command, mounts=[f"{work}:/desk"])

    data = ("--data", "/desk/data")
    polarmask("polarmask", "precompute", *data, "--out", "/desk/labels", "--preset", "tiny")
    polarmask(
        *("torchrun", "--nproc-per-node=2", "-m", "polarmask", "train", "--preset=tiny", *data),
        *("--labels", "/desk/labels", "--out", "/desk/run", "--set", "optim.epochs=1"),
    )
    packed = polarmask(
        *("python", "-m", "polarmask_serving", "archive", "--model", "/desk/run/model"),
        *("--out", "/desk/model.mar", "--version", "7"),
    )
    assert "sha256:" in packed
    return work / "model.mar"


def test_the_trainer_lists_presets(run):
    assert "coco-r50-1x" in run("trainer", "polarmask", "presets")


@pytest.fixture
def pod(docker, images, archive, tmp_path):
    """The two containers of a serving pod, at an address of this machine."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)  # for the user in the images
    common = ("run", "--detach", "--network=host", f"--env=POD_IP={POD_IP}", "--read-only")
    common += ("--cap-drop=ALL", "--security-opt=no-new-privileges")
    server = docker(
        *(*common, f"--volume={scratch}:/scratch", f"--volume={archive.parent}:/models:ro"),
        images["serving"],
    ).strip()
    proxy = docker(
        *(*common, f"--volume={scratch}:/scratch:ro", "--tmpfs=/proxy:uid=1000"),
        *("--entrypoint", "python", images["serving"], "-m", "polarmask_serving.proxy.main"),
        *("--server=/scratch", "--scratch=/proxy"),
    ).strip()
    yield server, proxy
    docker("rm", "--force", server, proxy)


def test_a_pod_answers_through_its_proxy_and_ends_when_asked(pod, docker, archive):
    server, proxy = pod
    health = ("inspect", "--format={{.State.Health.Status}}", server)
    deadline = time.monotonic() + 180
    while (status := docker(*health).strip()) != "healthy":
        assert status == "starting", docker("logs", server)
        assert time.monotonic() < deadline, docker("logs", server)
        time.sleep(1)
    picture = next((archive.parent / "data" / "images").glob("val*.png")).read_bytes()
    url = f"http://{POD_IP}:8080/predictions/polarmask"
    request = urllib.request.Request(url, picture, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["model"] == {"name": "polarmask", "version": "7"}
    operations = f"http://{POD_IP}:8082"
    with urllib.request.urlopen(f"{operations}/metrics", timeout=10) as answer:
        assert b"polarmask_stage_seconds" in answer.read()
    with urllib.request.urlopen(f"{operations}/healthz", timeout=10) as answer:
        assert json.load(answer)["version"] == "7"

    for container, code in ((proxy, 0), (server, 128 + 15)):
        started = time.monotonic()
        docker("stop", "--time=30", container)
        assert time.monotonic() - started < 15
        ended = int(docker("inspect", "--format={{.State.ExitCode}}", container))
        assert ended == code, "it was killed, or ended for another reason"


def test_a_server_without_a_model_reports_it(run):
    output = run(
        *(
            "serving",
            "python",
            "-m",
            "polarmask_serving.torchserve.pod",
            "--archive=/models/model.mar",
        ),
        "--scratch=/tmp",
        check=False,
    )
    assert output.startswith("error: ")
    assert "/models/model.mar" in output
