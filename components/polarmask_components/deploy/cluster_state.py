"""State of a serving Deployment and its pods, and patches for it. Pure: dicts in, values out.

The model is named by two variables of the init container and two annotations of the pods. While a
roll-out is not decided, one annotation of the Deployment names the model to return to: the run
after one that was killed finds it there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from polarmask_components.deploy.target import ServedModel
from polarmask_components.errors import RollOutError

INIT_CONTAINER = "fetch-model"
VERSION = "polarmask.io/version"
SHA256 = "polarmask.io/archive-sha256"
RETURN_TO = "polarmask.io/return-to"

_MOST_RESTARTS = 2
"""A container that ended more often does not come up."""
_OVERDUE = timedelta(seconds=30)
"""A pod so long past the moment it had to be gone is lost with its node and answers nobody."""
_STUCK = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
}

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, kw_only=True)
class ReturnPoint:
    """What a roll-out returns to if it fails."""

    model: ServedModel
    idle: bool
    """No pod served: there was no model yet, or the Deployment was scaled to none."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the Deployment's controller is."""

    done: bool = False
    failed: bool = False
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a pod does not serve."""

    pod: str
    container: str
    message: str
    fatal: bool
    """It will not pass by waiting."""
    restarted: bool
    """What ended is not what runs now."""


@dataclass(frozen=True, kw_only=True)
class RollOut:
    """How far a roll-out and its pods are."""

    done: bool
    """All pods serve the model, and none of another one is left to answer."""
    failed: bool
    """It will not succeed by waiting."""
    message: str
    trouble: Trouble | None


def served_model(deployment: Object) -> ServedModel:
    """Return the model that new pods of a Deployment serve.

    Raises:
        RollOutError: It is no Deployment of ours.
    """
    template = deployment["spec"]["template"]
    containers = template["spec"].get("initContainers") or []
    init = next((each for each in containers if each["name"] == INIT_CONTAINER), None)
    if init is None:
        raise RollOutError(
            f"Deployment {deployment['metadata']['name']} has no init container {INIT_CONTAINER}; "
            "apply the manifests of k8s/"
        )
    variables = {each["name"]: each.get("value", "") for each in init.get("env") or []}
    annotations = template["metadata"].get("annotations") or {}
    return ServedModel(
        version=annotations.get(VERSION, ""),
        uri=variables.get("MODEL_URI", ""),
        sha256=variables.get("MODEL_SHA256", ""),
    )


def undecided(deployment: Object) -> ReturnPoint | None:
    """Return what a roll-out that is not decided yet would return to, or None.

    Raises:
        RollOutError: The annotation is not ours.
    """
    annotations = deployment["metadata"].get("annotations") or {}
    if RETURN_TO not in annotations:
        return None
    try:
        content = json.loads(annotations[RETURN_TO])
        return ReturnPoint(model=ServedModel(**content["model"]), idle=bool(content["idle"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RollOutError(
            f"annotation {RETURN_TO} of Deployment {deployment['metadata']['name']} can't be read "
            f"({error}); remove it"
        ) from error


def return_point(deployment: Object, champion: str | None) -> ReturnPoint:
    """Return what to go back to from a roll-out that begins at this state of the Deployment.

    Args:
        deployment: As it was before the roll-out.
        champion: Version that was promoted last.
    """
    served, earlier = served_model(deployment), undecided(deployment)
    if earlier is not None and served.version != champion:
        return earlier  # what is served now was left unproven by a run that was killed
    return ReturnPoint(model=served, idle=not served.version or _replicas(deployment) == 0)


def patch_to(model: ServedModel, *, back: ReturnPoint | None, replicas: int | None) -> Object:
    """Return a strategic merge patch that makes a Deployment serve a model.

    Args:
        model: The model.
        back: What to return to if it fails; None once it is decided.
        replicas: Pods to scale to; None leaves their number alone.
    """
    environment = {"MODEL_URI": model.uri, "MODEL_SHA256": model.sha256}
    variables = [{"name": name, "value": value} for name, value in environment.items()]
    spec: Object = {
        "template": {
            "metadata": {"annotations": {VERSION: model.version, SHA256: model.sha256}},
            "spec": {"initContainers": [{"name": INIT_CONTAINER, "env": variables}]},
        }
    }
    if replicas is not None:
        spec["replicas"] = replicas
    note = None if back is None else json.dumps(asdict(back), sort_keys=True)
    return {"metadata": {"annotations": {RETURN_TO: note}}, "spec": spec}


def progress_of(deployment: Object, before: Object) -> Progress:
    """Return how far the roll-out of a Deployment is, by what the Deployment reports.

    Args:
        deployment: As it is now.
        before: As it was before the roll-out. Where Kubernetes returns to pods that still run, it
            reports the earlier failure for a moment longer.
    """
    name, status = deployment["metadata"]["name"], deployment.get("status") or {}
    if deployment["spec"].get("paused"):
        return Progress(
            failed=True, message=f"it is paused: `kubectl rollout resume deploy/{name}`"
        )
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return Progress(message="the Deployment's controller has not seen it yet")
    refused = _condition(deployment, "ReplicaFailure")
    why = f"; {refused.get('message')}" if refused.get("status") == "True" else ""
    moving = _condition(deployment, "Progressing")
    is_news = moving != _condition(before, "Progressing")
    if moving.get("reason") == "ProgressDeadlineExceeded" and is_news:
        seconds = deployment["spec"].get("progressDeadlineSeconds", 600)
        return Progress(failed=True, message=f"no pod became ready for {seconds} s{why}")
    wanted, total = _replicas(deployment), status.get("replicas", 0)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return Progress(
        done=updated == total == available == wanted,
        message=f"{updated} of {wanted} pods are new, {available} of {total} are available{why}",
    )


def roll_out_of(
    deployment: Object, pods: Sequence[Object], model: ServedModel, *, before: Object, now: datetime
) -> RollOut:
    """Return how far the roll-out of a model is.

    Args:
        deployment: As it is now.
        pods: Its pods.
        model: What all of them shall serve.
        before: The Deployment as it was before the roll-out.
        now: With a time zone.
    """
    progress, trouble = progress_of(deployment, before), trouble_of(pods, model)
    leaving = old_pods(pods, model, now=now) if progress.done else []
    parts = [progress.message]
    if trouble:
        parts.append(trouble.message)
    if leaving:
        parts.append(f"still leaving: {', '.join(leaving)}")
    return RollOut(
        done=progress.done and not leaving,
        failed=progress.failed or bool(trouble and trouble.fatal),
        message="; ".join(parts),
        trouble=trouble,
    )


def old_pods(pods: Sequence[Object], model: ServedModel, *, now: datetime) -> list[str]:
    """Return names of pods that may still answer with another model, those on their way out too.

    Args:
        pods: Pods of the Deployment.
        model: What all of them shall serve.
        now: With a time zone.
    """
    return [
        pod["metadata"]["name"]
        for pod in pods
        if (pod["metadata"].get("annotations") or {}).get(SHA256) != model.sha256
        and (pod.get("status") or {}).get("phase") not in {"Failed", "Succeeded"}
        and not _is_overdue(pod, now)
    ]


def _is_overdue(pod: Object, now: datetime) -> bool:
    due = pod["metadata"].get("deletionTimestamp")  # when its grace ends
    return bool(due) and now > datetime.fromisoformat(due) + _OVERDUE


def trouble_of(pods: Sequence[Object], model: ServedModel) -> Trouble | None:
    """Return why pods of a model do not serve: the worst reason, None if nothing is wrong."""
    troubles = [
        trouble
        for pod in pods
        if (pod["metadata"].get("annotations") or {}).get(SHA256) == model.sha256
        and not pod["metadata"].get("deletionTimestamp")
        and (trouble := _trouble_of_pod(pod)) is not None
    ]
    return max(troubles, key=lambda trouble: trouble.fatal, default=None)


def _trouble_of_pod(pod: Object) -> Trouble | None:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if _condition(pod, "Ready").get("status") == "True":
        return None
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        message = f"pod {name} has no node: {scheduled.get('message', '')}"
        return Trouble(pod=name, container="", message=message, fatal=False, restarted=False)
    containers = status.get("initContainerStatuses") or []
    containers = [*containers, *(status.get("containerStatuses") or [])]
    troubles = [trouble for each in containers if (trouble := _trouble_of_container(name, each))]
    return max(troubles, key=lambda trouble: trouble.fatal, default=None)


def _trouble_of_container(pod: str, status: Object) -> Trouble | None:
    state, restarts = status.get("state") or {}, status.get("restartCount", 0)
    waiting, ended = state.get("waiting") or {}, state.get("terminated")
    if ended is not None and not ended["exitCode"]:
        return None
    ended = ended or (status.get("lastState") or {}).get("terminated")
    if waiting.get("reason") in _STUCK:
        message, fatal = f"{waiting['reason']}: {waiting.get('message', '')}", True
    elif ended is not None:
        times = restarts + ("running" not in state)
        reason = ended.get("reason", "Error")
        message = f"ended {times} times, at last with exit code {ended['exitCode']} ({reason})"
        fatal = restarts >= _MOST_RESTARTS
    elif "running" in state and not status.get("ready"):
        message, fatal = "runs and is not ready", False
    else:
        return None
    return Trouble(
        pod=pod,
        container=status["name"],
        message=f"pod {pod}, container {status['name']}: {message}",
        fatal=fatal,
        restarted="running" in state and ended is not None,
    )


def _condition(of: Object, type_: str) -> Object:
    """Return an object's condition of a type; empty if it has none."""
    conditions: list[Object] = (of.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == type_), {})


def _replicas(deployment: Object) -> int:
    return int(deployment["spec"].get("replicas", 1))
