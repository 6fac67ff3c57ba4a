"""What KFP's driver makes of the resources of a step: limits and requests of its pod.

As `initPodSpecPatch` of the backend 2.17: a value that is known at run time is read as a text, so a
number becomes an empty one; an accelerator without a type or a count is left out without a word,
and an amount that is empty fails the step.
"""

import re

from kubernetes.utils.quantity import parse_quantity

_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.+)'\]\}\}")


class DriverError(Exception):
    """The driver can't make the pod; the step fails before it starts."""


def pod_resources(spec, step, parameters, outputs):
    """Return `limits` and `requests` of a step's pod.

    Args:
        spec: The compiled pipeline.
        step: Name of the task.
        parameters: Values of the pipeline's parameters; the others have their defaults.
        outputs: Values of earlier tasks' outputs, by (task, output).
    """
    resolve = _Resolver(spec, parameters, outputs)
    path = resolve.path_to(step)
    label = spec["components"][path[-1][1]["componentRef"]["name"]]["executorLabel"]
    given = spec["deploymentSpec"]["executors"][label]["container"].get("resources", {})

    def text(value):
        found = _INPUT.fullmatch(value)
        if found is None:
            return value
        known = resolve.value(path, found[1])
        return known if isinstance(known, str) else ""

    amounts = {"limits": {}, "requests": {}}
    for kind, name, field in (
        ("limits", "memory", "resourceMemoryLimit"),
        ("limits", "cpu", "resourceCpuLimit"),
        ("requests", "memory", "resourceMemoryRequest"),
        ("requests", "cpu", "resourceCpuRequest"),
    ):
        if field in given:
            amounts[kind][name] = _amount(text(given[field]))
    accelerator = given.get("accelerator", {})
    resource = text(accelerator.get("resourceType", ""))
    count = text(accelerator.get("resourceCount", ""))
    if resource and count:
        amounts["limits"][resource] = _amount(count)
    return amounts


def _amount(text):
    try:
        parse_quantity(text)
    except ValueError as error:
        raise DriverError(f"failed to init podSpecPatch: {error}") from error
    return text


class _Resolver:
    def __init__(self, spec, parameters, outputs):
        self._spec, self._outputs = spec, outputs
        inputs = spec["root"]["inputDefinitions"]["parameters"]
        self._parameters = {n: each["defaultValue"] for n, each in inputs.items()} | parameters

    def path_to(self, step, dag=None):
        """Return the tasks from the root to a step, each with its name."""
        tasks = (self._spec["root"] if dag is None else dag)["dag"]["tasks"]
        if step in tasks:
            return [(step, tasks[step])]
        for name, task in tasks.items():
            inner = self._spec["components"][task["componentRef"]["name"]]
            if "dag" in inner and (found := self.path_to(step, inner)):
                return [(name, task), *found]
        return []

    def value(self, path, name):
        """Return the value of an input of the last task of a path."""
        if not path:
            return self._parameters[name]
        given = path[-1][1].get("inputs", {}).get("parameters", {})
        if name not in given:
            raise DriverError(f"{path[-1][0]}: executorInput did not contain {name}")
        if "taskOutputParameter" in given[name]:
            source = given[name]["taskOutputParameter"]
            return self._outputs[source["producerTask"], source["outputParameterKey"]]
        if "componentInputParameter" in given[name]:
            return self.value(path[:-1], given[name]["componentInputParameter"])
        return given[name]["runtimeValue"]["constant"]
