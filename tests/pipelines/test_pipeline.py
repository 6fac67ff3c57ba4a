"""The pipeline as Kubeflow gets it."""

import re
from pathlib import Path

import pytest
import yaml

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
    for executor in executors.values():
        (given,) = executor["secretAsEnv"]
        assert given["optional"]  # where accounts have roles there is no Secret
        keys = {each["envVar"]: each["secretKey"] for each in given["keyToEnv"]}
        assert keys == {name: name for name in keys}
        assert {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} < set(keys)
        assert {"AWS_REGION", "AWS_SESSION_TOKEN", "POLARMASK_STORAGE_CA"} < set(keys)
    assert {re.sub(r"^exec-|-\d+$", "", name) for name in executors} == {
        *("preflight", "check-changed", "ingest-coco", "check-champion", "train"),
        *("evaluate-champion", "deploy-torchserve", "remember-run"),
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
