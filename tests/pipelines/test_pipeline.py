"""The pipeline as Kubeflow gets it."""

import re
from pathlib import Path

import pytest
import yaml

from kube.kfp_resources import DriverError, pod_resources
from kube.quantity import quantity
from polarmask_pipelines.__main__ import main
from polarmask_pipelines.local_runner import step_names

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled" / "train_and_deploy.yaml"
STEPS = step_names()
CACHED = {
    *("ingest-coco", "precompute-shards", "precompute-rays"),
    *("train", "evaluate", "measure-engines"),
}


TRIED_AGAIN = {
    *("ingest-coco", "precompute-shards", "precompute-rays", "train", "evaluate"),
    *("evaluate-champion", "measure-engines", "deploy-torchserve"),
}


@pytest.fixture(scope="module")
def spec():
    return next(yaml.safe_load_all(COMPILED.read_text()))


def tasks_of(spec):
    """Return all tasks by name, those of nested groups too."""
    groups = [spec["root"], *spec["components"].values()]
    tasks = [task for group in groups for task in group.get("dag", {}).get("tasks", {}).items()]
    return {name: task for name, task in tasks if name in STEPS}


def test_committed_file_is_what_the_code_compiles_to(tmp_path):
    assert main(["compile", "--out", str(tmp_path / "compiled.yaml")]) == 0
    assert (tmp_path / "compiled.yaml").read_text() == COMPILED.read_text(), "run `make compile`"


def test_every_parameter_has_a_default_so_that_the_form_of_the_ui_can_be_sent(spec):
    for parameter in spec["root"]["inputDefinitions"]["parameters"].values():
        assert "defaultValue" in parameter


def test_sorted_parameters_come_in_groups(spec):
    groups = [name.split("_")[0] for name in sorted(spec["root"]["inputDefinitions"]["parameters"])]
    assert list(dict.fromkeys(groups)) == [
        "data",
        "deploy",
        "eval",
        "label",
        "notify",
        "run",
        "storage",
        "train",
    ]


def test_steps_have_names_for_people(spec):
    for name, task in tasks_of(spec).items():
        assert task["taskInfo"]["name"] not in (name, "")


def test_steps_that_depend_on_more_than_their_inputs_are_not_cached(spec):
    tasks = tasks_of(spec)
    assert set(tasks) == STEPS
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == CACHED


def test_steps_that_run_for_minutes_are_tried_again_when_their_pod_is_lost(spec):
    tries = {
        name: task["retryPolicy"]["maxRetryCount"]
        for name, task in tasks_of(spec).items()
        if "retryPolicy" in task
    }
    assert tries == dict.fromkeys(TRIED_AGAIN, 2)


def test_the_exit_step_knows_where_a_training_job_may_be_left(spec):
    given = tasks_of(spec)["notify"]["inputs"]["parameters"]
    assert given["on"]["componentInputParameter"] == "train_on"
    assert given["job"]["componentInputParameter"] == "train_job"


def test_cached_steps_take_the_code_version(spec):
    for name in CACHED:
        given = tasks_of(spec)[name]["inputs"]["parameters"]["code_version"]
        assert given["componentInputParameter"] == "pipelinechannel--resolve-data-code_version"


def test_steps_that_reach_the_storage_get_its_keys_and_no_other_step_does():
    _, platforms = yaml.safe_load_all(COMPILED.read_text())
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    with_keys = {name: each for name, each in executors.items() if "secretAsEnv" in each}
    for executor in with_keys.values():
        (given,) = executor["secretAsEnv"]
        assert given["optional"]  # where accounts have roles there is no Secret
        keys = {each["envVar"]: each["secretKey"] for each in given["keyToEnv"]}
        assert keys == {name: name for name in keys}
        assert {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} < set(keys)
        assert {"AWS_REGION", "AWS_SESSION_TOKEN", "POLARMASK_STORAGE_CA"} < set(keys)
    assert {re.sub(r"^exec-|-\d+$", "", name) for name in with_keys} == {
        *("preflight", "check-changed", "ingest-coco", "check-champion", "train"),
        *("evaluate-champion", "deploy-torchserve", "record-stop", "remember-run"),
    }


def test_pods_make_label_shards_and_one_step_joins_them(spec):
    tasks = {name: task for group in spec["components"].values()
             for name, task in group.get("dag", {}).get("tasks", {}).items()}  # fmt: skip
    [(number, loop)] = [each for each in tasks.items() if "parameterIterator" in each[1]]
    assert loop["parameterIterator"]["items"]["inputParameter"].endswith("label_shards")
    assert "check-champion" in loop["dependentTasks"]  # no hours of labels for other categories
    assert tasks["precompute-shards"]["retryPolicy"]["maxRetryCount"] == 2
    given = tasks["precompute-rays"]["inputs"]["artifacts"]["shards"]["taskOutputArtifact"]
    assert given["producerTask"] == number
    definition = spec["components"]["comp-precompute-rays"]["inputDefinitions"]["artifacts"][
        "shards"
    ]
    assert definition["isArtifactList"]


def test_no_step_installs_anything(spec):
    for executor in spec["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


PREFLIGHT = {
    "train_memory": "32Gi",
    "gpu_resource": "nvidia.com/gpu",
    "eval_gpus": "",
    "label_gpus": "",
    "serving_gpu": "",
}


def resources(spec, step, parameters=None, **outputs):
    """Return what KFP's driver makes of a step's resources, with these outputs of preflight."""
    known = {("preflight", name): value for name, value in (PREFLIGHT | outputs).items()}
    return pod_resources(spec, step, parameters or {}, known)


def test_every_step_asks_for_little_and_has_a_memory_limit(spec):
    steps = [*tasks_of(spec), "remember-run-2"]
    asked = {step: resources(spec, step) for step in steps}
    for amounts in asked.values():
        assert set(amounts["requests"]) == {"cpu", "memory"}
        assert set(amounts["limits"]) == {"memory"}  # a GPU that nobody wants is not asked for
        assert quantity(amounts["requests"]["cpu"]) <= 0.1
        assert quantity(amounts["requests"]["memory"]) <= 512 * 1024**2
    limits = {step: amounts["limits"]["memory"] for step, amounts in asked.items()}
    assert {step: limit for step, limit in limits.items() if limit != "4Gi"} == {
        **dict.fromkeys(("ingest-coco", "precompute-shards", "precompute-rays"), "16Gi"),
        **dict.fromkeys(("evaluate", "evaluate-champion", "measure-engines"), "16Gi"),
        "train": "32Gi",
    }


def test_memory_limits_are_parameters(spec):
    wanted = {"eval_memory": "64Gi", "label_memory": "24Gi"}
    for step, limit in (("evaluate", "64Gi"), ("measure-engines", "64Gi"), ("ingest-coco", "24Gi")):
        assert resources(spec, step, wanted)["limits"] == {"memory": limit}


@pytest.mark.parametrize(
    ("checked", "steps", "gpus"),
    [
        pytest.param({"eval_gpus": "4"}, {"evaluate", "evaluate-champion"}, "4", id="evaluation"),
        pytest.param({"label_gpus": "1"}, {"precompute-shards"}, "1", id="labels"),
        pytest.param({"serving_gpu": "nvidia.com/gpu"}, {"measure-engines"}, "1", id="engines"),
    ],
)
def test_gpus_go_to_the_steps_that_use_them(spec, checked, steps, gpus):
    found = {step: resources(spec, step, **checked)["limits"] for step in tasks_of(spec)}
    with_gpus = {step: each for step, each in found.items() if set(each) != {"memory"}}
    assert set(with_gpus) == steps
    assert {each["nvidia.com/gpu"] for each in with_gpus.values()} == {gpus}


def test_steps_that_may_have_a_gpu_may_go_to_its_nodes(spec):
    _, platforms = yaml.safe_load_all(COMPILED.read_text())
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    tolerant = {name.removeprefix("exec-") for name, each in executors.items()
                if {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
                in each.get("tolerations", [])}  # fmt: skip
    shared = {name.removeprefix("exec-") for name, each in executors.items()
              if {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory",
                  "sizeLimit": "8Gi"} in each.get("emptyDirMounts", [])}  # fmt: skip
    with_gpu = {"precompute-shards", "evaluate", "evaluate-champion", "measure-engines"}
    assert tolerant == with_gpu
    assert shared == with_gpu | {"ingest-coco", "precompute-rays", "train"}


def test_the_driver_of_the_double_drops_a_number_of_gpus_and_refuses_a_number_as_memory(spec):
    assert set(resources(spec, "evaluate", eval_gpus=4)["limits"]) == {"memory"}
    with pytest.raises(DriverError):
        resources(spec, "evaluate", {"eval_memory": 16})
