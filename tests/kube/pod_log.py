"""The pods/log endpoint: which container, which start of it, which lines."""

from kube.errors import ApiError


def pod_log(pod, logs, query, is_over):
    """Return the lines of a pod's log; 400 while the container has not started."""
    name = pod["metadata"]["name"]
    container = query.get("container") or _only_container(pod)
    spec = pod["spec"]
    known = [each["name"] for each in (*spec.get("initContainers", []), *spec["containers"])]
    if container not in known:
        message = f"container {container} is not valid for pod {name}"
        raise ApiError(400, "BadRequest", message)
    previous = query.get("previous", "").lower() == "true"
    run = logs.run_of(pod, container, previous=previous)
    if run is None and previous:
        message = f'previous terminated container "{container}" in pod "{name}" not found'
        raise ApiError(400, "BadRequest", message)
    if run is None:
        reason = _waiting_reason(pod, container)
        message = f'container "{container}" in pod "{name}" is waiting to start: {reason}'
        raise ApiError(400, "BadRequest", message)
    follow = query.get("follow", "").lower() == "true"
    return logs.lines(run, follow=follow, query=query, is_over=is_over)


def _only_container(pod):
    names = [each["name"] for each in pod["spec"]["containers"]]
    if len(names) > 1:
        message = (
            f"a container name must be specified for pod {pod['metadata']['name']}, choose one "
            f"of: [{' '.join(names)}]"
        )
        raise ApiError(400, "BadRequest", message)
    return names[0]


def _waiting_reason(pod, container):
    status = pod.get("status", {})
    for each in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        if each["name"] == container and "waiting" in each["state"]:
            return each["state"]["waiting"]["reason"]
    return "ContainerCreating"
