"""Training on a cluster, everything real but the machines: data in S3, pods as processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from factories import make_tiny_coco
from kube.kubelet import Kubelet
from kube.operator import TrainingOperator
from kube.server import KubeServer
from polarmask.cli import main as polarmask
from polarmask_components.storage.s3_objects import S3Objects
from polarmask_components.training.job_identity import job_name
from polarmask_components.training.job_storage import JobStorage

ROOT = Path(__file__).parents[2]
PRESET = "tiny"

# The train step in a process of its own, as Kubeflow runs it.
_STEP = """
import json, logging, sys
from pathlib import Path
from kfp import dsl
from polarmask_components.parameters.job_settings import read_job_settings
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.training.job_launcher import Pace
from polarmask_components.training import cluster_training
from polarmask_components.steps.train import train

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
asked = json.loads(sys.argv[1])
folder, parameters = Path(asked["folder"]), asked["parameters"]
run_id = parameters.pop("run_id", "")
cluster_training.PACE = Pace(look=0.3)


def stored(kind, name, **metadata):
    artifact = kind(name=name, uri=f"minio://mlpipeline/{name}", metadata=metadata)
    artifact._get_path = lambda: str(folder / name)
    return artifact


train.python_func(
    dataset=stored(dsl.Dataset, "data", data_commit="c0ffee", data_hash="a59d.dir"),
    labels=stored(dsl.Dataset, "labels"),
    model=stored(dsl.Model, asked["out"] + "/model"),
    run=stored(dsl.Artifact, asked["out"] + "/run"),
    page=stored(dsl.HTML, asked["out"] + "/page.html"),
    code_version="v1",
    training_request=TrainingRequest(
        on="pytorchjob",
        storage=f"{asked['place']}/training",
        job=read_job_settings(parameters.pop("job")),
        **parameters,
    ).to_json(),
    run_id=run_id,
)
"""


@dataclass
class Machines:
    """A cluster, and inputs in a folder."""

    server: KubeServer
    kubelet: Kubelet
    folder: Path
    place: str
    started: list = field(default_factory=list)

    def start_step(self, **parameters):
        asked = {
            "folder": str(self.folder),
            "place": self.place,
            "out": parameters.pop("out", "out"),
            "parameters": {"preset": PRESET, "overrides": "", "job": JOB, **parameters},
        }
        log = (self.folder / "step.log").open("ab")
        with log:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-c", _STEP, json.dumps(asked)], stdout=log, stderr=log
                )
            )
        return self.started[-1]

    def log(self):
        return (self.folder / "step.log").read_text(errors="replace")

    def pods(self):
        return [each["metadata"]["name"] for each in self.server.list("Pod")]

    def lines_of_steps(self, run_id):
        """Return how many lines of progress the first nodes of a run have printed."""
        return self.server.logs.text(f"{job_name(run_id)}-master-0").count("step=")

    def trainers(self):
        """Return the training processes of all pods."""
        pids = [pid for name in self.pods() for pid in _process_ids(self.kubelet, name)]
        return [pid for pid in pids if _is_trainer(pid)]


JOB = {"cpu": 1.0, "memory": "1Gi", "disk": "1Gi", "max_restarts": 40.0}


def _process_ids(kubelet, name):
    try:
        return kubelet.process_ids(name)
    except KeyError:
        return []


def _is_trainer(pid):
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return False
    return "training_process" in " ".join(command) and "torch.distributed.run" not in command


@pytest.fixture
def machines(tmp_path, s3_environment, monkeypatch, request):
    nodes = {"node-a": {}, "node-b": {}, "node-c": {}}
    with KubeServer() as server, Kubelet(server, nodes=nodes) as kubelet, TrainingOperator(server):
        server.create(
            "Secret", {"metadata": {"name": "polarmask-s3"}, "stringData": s3_environment}
        )
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        made = Machines(server, kubelet, tmp_path, f"s3://polarmask/{request.node.name}")
        yield made
        for process in made.started:
            process.kill()
            process.wait()
        assert server.list("PyTorchJob") == []
        server.wait_for(lambda: not server.list("Pod"))


def put_inputs(machines, data, preset=PRESET):
    """Make labels; put both inputs where Kubeflow has its copies for the step."""
    if not (machines.folder / "data").exists():
        (machines.folder / "data").symlink_to(data)
    command = ["precompute", f"--preset={preset}", "--data", str(data)]
    assert polarmask([*command, "--out", str(machines.folder / "labels")]) == 0


def finish(machines, process, timeout):
    process.wait(timeout)
    assert process.returncode == 0, machines.log()[-6000:]


def steps_of(machines, out="out"):
    lines = (machines.folder / out / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.slow
def test_two_nodes_train_from_and_to_object_storage(machines):
    put_inputs(machines, make_tiny_coco(machines.folder / "data", images=8, val_images=2))
    overrides = "optim.epochs=3 optim.batch_size=4"
    process = machines.start_step(run_id="one", nodes=2, processes_per_node=1, overrides=overrides)
    finish(machines, process, 240)
    assert steps_of(machines) == [1, 2, 3, 4, 5, 6]
    card = json.loads((machines.folder / "out/model/model.json").read_text())
    assert card["provenance"]["data_commit"] == "c0ffee"
    assert card["training"]["processes"] == 2
    assert "step=6/6" in machines.log()
    stored = S3Objects.from_uri(f"{machines.place}/training").names()
    assert not [name for name in stored if name.endswith(("latest.json", "inputs.json"))]


def kill_at_random(machines, dice, step_process):
    """Kill a training process and the launcher at a random step; return the next launcher."""
    taken = machines.lines_of_steps(FULL["run_id"])
    wait_for(lambda: machines.lines_of_steps(FULL["run_id"]) > taken, machines, step_process)
    time.sleep(dice.uniform(0, 6))
    # For a moment there may be none: after one node the other starts again, too.
    wait_for(lambda: kill_one(machines.trainers(), dice), machines, step_process)
    time.sleep(dice.uniform(0, 2))
    step_process.kill()
    step_process.wait()
    return machines.start_step(**FULL)


def kill_one(pids, dice):
    """Kill one of these processes; return whether one was still there."""
    with suppress(ProcessLookupError, IndexError):
        os.kill(dice.choice(pids), signal.SIGKILL)
        return True
    return False


BATCH = "optim.batch_size=4"  # an image for each of the four processes
FULL = {"run_id": "full", "nodes": 2, "processes_per_node": 2, "overrides": BATCH}
KILLS = 5


def wait_for(condition, machines, process):
    give_up = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, machines.log()[-6000:]
        assert time.monotonic() < give_up, machines.log()[-6000:]
        time.sleep(0.2)


@pytest.mark.slow
def test_killed_workers_and_launchers_cost_nothing_but_time(machines):
    """Five times both; the model is as good as that of an unbroken run on this machine."""
    data = ROOT / "data"
    put_inputs(machines, data)
    dice = random.Random(0)
    process = machines.start_step(**FULL)
    for _ in range(KILLS):
        process = kill_at_random(machines, dice, process)
    finish(machines, process, 2400)
    steps = steps_of(machines)
    assert steps == list(range(1, len(steps) + 1))  # each step once, none lost

    local = machines.folder / "local"
    flags = ["--data", str(data), "--labels", str(machines.folder / "labels")]
    flags += ["--set", BATCH]
    assert polarmask(["train", f"--preset={PRESET}", *flags, "--out", str(local)]) == 0
    found = [
        mask_ap(machines, model, data) for model in (machines.folder / "out/model", local / "model")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.02)


def mask_ap(machines, model, data):
    out = machines.folder / f"report of {model.parent.name}"
    assert (
        polarmask(["evaluate", "--model", str(model), "--data", str(data), "--out", str(out)]) == 0
    )
    return json.loads((out / "evaluation.json").read_text())["mask_ap"]


@pytest.mark.slow
def test_a_job_that_may_shrink_goes_on_without_a_node_and_takes_the_next_one_in(machines):
    data = make_tiny_coco(machines.folder / "data", images=16, val_images=2)
    put_inputs(machines, data)
    overrides = "optim.epochs=10 optim.batch_size=4"
    asked = {"run_id": "elastic", "nodes": 2, "min_nodes": 1, "processes_per_node": 1}
    process = machines.start_step(**asked, overrides=overrides)
    storage = JobStorage(f"{machines.place}/training", job_name("elastic"))
    wait_for(storage.snapshots, machines, process)
    lost = machines.server.get("Pod", f"{job_name('elastic')}-worker-1")["spec"]["nodeName"]
    machines.kubelet.lose_node(lost)
    finish(machines, process, 1200)
    assert steps_of(machines) == list(range(1, 41))
