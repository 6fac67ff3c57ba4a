"""What Deployments and pods report, read without a cluster."""

import json
from datetime import UTC, datetime

import pytest

from polarmask_components.deploy.cluster_state import (
    RETURN_TO,
    SHA256,
    VERSION,
    ReturnPoint,
    old_pods,
    patch_to,
    progress_of,
    return_point,
    served_model,
    trouble_of,
    undecided,
)
from polarmask_components.deploy.target import ServedModel
from polarmask_components.errors import RollOutError

OLD = ServedModel(version="old", uri="s3://b/old.mar", sha256="0" * 64)
NEW = ServedModel(version="new", uri="s3://b/new.mar", sha256="1" * 64)


def deployment_of(model=OLD, *, note=None, wanted=2, conditions=(), **status):
    environment = [
        {"name": "MODEL_URI", "value": model.uri},
        {"name": "HOME", "value": "/scratch"},
        {"name": "MODEL_SHA256", "value": model.sha256},
    ]
    return {
        "metadata": {
            "name": "polarmask",
            "generation": 3,
            "annotations": {RETURN_TO: note} if note else {},
        },
        "spec": {
            "replicas": wanted,
            "template": {
                "metadata": {"annotations": {VERSION: model.version, SHA256: model.sha256}},
                "spec": {"initContainers": [{"name": "fetch-model", "env": environment}]},
            },
        },
        "status": {"observedGeneration": 3, "conditions": list(conditions), **status},
    }


def note_of(model, *, idle=False):
    back = ReturnPoint(model=model, idle=idle)
    patch = patch_to(NEW, back=back, replicas=None)
    return patch["metadata"]["annotations"][RETURN_TO]


def test_a_model_is_read_from_where_a_patch_puts_it():
    back = ReturnPoint(model=OLD, idle=False)
    patch = patch_to(NEW, back=back, replicas=1)
    (init,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert init["env"] == [
        {"name": "MODEL_URI", "value": NEW.uri},
        {"name": "MODEL_SHA256", "value": NEW.sha256},
    ]
    patched = deployment_of(NEW, note=patch["metadata"]["annotations"][RETURN_TO])
    assert served_model(patched) == NEW
    assert undecided(patched) == back
    assert patch["spec"]["replicas"] == 1
    decided = patch_to(NEW, back=None, replicas=None)
    assert decided["metadata"]["annotations"] == {RETURN_TO: None}
    assert "replicas" not in decided["spec"]


def test_a_deployment_of_the_bare_manifest_serves_nothing():
    deployment = deployment_of()
    template = deployment["spec"]["template"]
    template["metadata"] = {}
    template["spec"]["initContainers"][0]["env"] = None
    assert served_model(deployment) == ServedModel()
    assert return_point(deployment, None) == ReturnPoint(model=ServedModel(), idle=True)


def test_a_strange_deployment_and_a_strange_note_are_refused():
    deployment = deployment_of(note="yesterday")
    with pytest.raises(RollOutError, match="remove it"):
        undecided(deployment)
    del deployment["spec"]["template"]["spec"]["initContainers"]
    with pytest.raises(RollOutError, match="no init container fetch-model"):
        served_model(deployment)


@pytest.mark.parametrize(
    ("deployment", "champion", "expected"),
    [
        pytest.param(deployment_of(), "old", (OLD, False), id="the-champion"),
        pytest.param(deployment_of(), None, (OLD, False), id="registry-unknown"),
        pytest.param(deployment_of(wanted=0), "old", (OLD, True), id="scaled-to-none"),
        pytest.param(
            deployment_of(NEW, note=note_of(OLD)), "old", (OLD, False), id="left-by-a-killed-run"
        ),
        pytest.param(
            deployment_of(NEW, note=note_of(OLD)), "new", (NEW, False), id="killed-once-promoted"
        ),
        pytest.param(
            deployment_of(NEW, note=note_of(ServedModel(), idle=True)),
            None,
            (ServedModel(), True),
            id="first-one-killed",
        ),
    ],
)
def test_a_roll_out_returns_to_what_was_proven_last(deployment, champion, expected):
    back = return_point(deployment, champion)
    assert (back.model, back.idle) == expected


def condition(type_, status, reason, message=""):
    return {"type": type_, "status": status, "reason": reason, "message": message}


ALL = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
LATE = condition("Progressing", "False", "ProgressDeadlineExceeded")
QUOTA = condition("ReplicaFailure", "True", "FailedCreate", "exceeded quota: gpus")


@pytest.mark.parametrize(
    ("deployment", "done", "failed", "expected_text"),
    [
        pytest.param(deployment_of(**ALL), True, False, "", id="done"),
        pytest.param(
            deployment_of(**ALL | {"observedGeneration": 2}), False, False, "not seen", id="unseen"
        ),
        pytest.param(
            deployment_of(**ALL | {"replicas": 3}), False, False, "2 of 3", id="an-old-pod-is-left"
        ),
        pytest.param(
            deployment_of(**ALL | {"availableReplicas": 1}), False, False, "1 of 2", id="not-ready"
        ),
        pytest.param(deployment_of(wanted=0), True, False, "", id="scaled-to-none"),
        pytest.param(
            deployment_of(conditions=[LATE, QUOTA]), False, True, "exceeded quota", id="too-late"
        ),
        pytest.param(
            deployment_of(conditions=[LATE], observedGeneration=2), False, False, "", id="stale"
        ),
    ],
)
def test_progress_follows_the_status_of_this_generation(deployment, done, failed, expected_text):
    progress = progress_of(deployment, deployment_of())
    assert (progress.done, progress.failed) == (done, failed)
    assert expected_text in progress.message


def test_a_failure_of_before_the_roll_out_is_no_news():
    failed = deployment_of(conditions=[LATE], replicas=3, updatedReplicas=2)
    assert progress_of(failed, deployment_of()).failed
    assert not progress_of(failed, deployment_of(NEW, conditions=[LATE])).failed


def pod_of(
    *, init=(), main=(), model=NEW, ready=False, scheduled=True, deleted="", phase="Running"
):
    conditions = [
        condition("Ready", str(ready), ""),
        condition("PodScheduled", str(scheduled), "Unschedulable", "0/3 nodes are available"),
    ]
    metadata = {"name": "pod", "annotations": {SHA256: model.sha256}}
    if deleted:
        metadata["deletionTimestamp"] = f"2026-01-31T{deleted}"
    status = {
        "phase": phase,
        "conditions": conditions,
        "initContainerStatuses": list(init),
        "containerStatuses": list(main),
    }
    return {"metadata": metadata, "status": status}


def container(state, *, restarts=0, last=None):
    last_state = {"terminated": last} if last else {}
    return {"name": "torchserve", "restartCount": restarts, "state": state, "lastState": last_state}


KILLED = {"exitCode": 137, "reason": "OOMKilled"}
WAITING = {"waiting": {"reason": "CrashLoopBackOff"}}
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed"}}


@pytest.mark.parametrize(
    ("pod", "fatal", "expected_text"),
    [
        pytest.param(pod_of(main=[container(NO_IMAGE)]), True, "no such tag", id="no-image"),
        pytest.param(
            pod_of(main=[container(WAITING, restarts=2, last=KILLED)]),
            True,
            "ended 3 times, at last with exit code 137 (OOMKilled)",
            id="crash-loop",
        ),
        pytest.param(
            pod_of(main=[container({"running": {}}, restarts=1, last=KILLED)]),
            False,
            "ended 1 times",
            id="crashed-once",
        ),
        pytest.param(pod_of(main=[container({"running": {}})]), False, "not ready", id="slow"),
        pytest.param(pod_of(scheduled=False), False, "0/3 nodes", id="no-node"),
    ],
)
def test_trouble_of_a_pod_is_named_and_weighed(pod, fatal, expected_text):
    trouble = trouble_of([pod_of(ready=True), pod], NEW)
    assert trouble.fatal is fatal
    assert expected_text in trouble.message


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(
            pod_of(main=[container(WAITING, restarts=9, last=KILLED)], ready=True), id="healed"
        ),
        pytest.param(pod_of(main=[container(NO_IMAGE)], model=OLD), id="of-another-model"),
        pytest.param(pod_of(main=[container(NO_IMAGE)], deleted="12:00:50Z"), id="on-its-way-out"),
        pytest.param(pod_of(init=[container(DONE, restarts=3)]), id="fetched-at-last"),
        pytest.param(pod_of(main=[container({"waiting": {"reason": "Init"}})]), id="starting"),
    ],
)
def test_what_passes_or_is_past_is_no_trouble(pod):
    assert trouble_of([pod], NEW) is None


@pytest.mark.parametrize(
    ("pod", "may_answer"),
    [
        pytest.param(pod_of(ready=True), False, id="of-this-model"),
        pytest.param(pod_of(ready=True, model=OLD), True, id="of-before"),
        pytest.param(pod_of(ready=True, model=ServedModel()), True, id="of-no-model"),
        pytest.param(pod_of(ready=True, model=OLD, deleted="12:00:50Z"), True, id="leaving"),
        pytest.param(pod_of(ready=True, model=OLD, deleted="11:59:29Z"), False, id="node-lost"),
        pytest.param(pod_of(model=OLD, phase="Failed"), False, id="evicted"),
    ],
)
def test_pods_of_before_may_answer_until_they_are_gone(pod, may_answer):
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert old_pods([pod], NEW, now=noon) == ([pod["metadata"]["name"]] if may_answer else [])


def test_a_note_says_all_that_going_back_needs():
    assert json.loads(note_of(OLD, idle=True)) == {
        "idle": True,
        "model": {"version": OLD.version, "uri": OLD.uri, "sha256": OLD.sha256},
    }
