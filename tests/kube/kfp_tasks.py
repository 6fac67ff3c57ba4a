"""The entries for tasks in a failed run, as Kubeflow Pipelines 2.17 makes them of Argo's nodes."""

from datetime import UTC, datetime, timedelta


def failed_tasks(spec, steps, run_id):
    """Return the entries: every level of the graph, its tries and drivers; no texts, no pods.

    Args:
        spec: The pipeline, a PipelineSpec.
        steps: Names of the steps that failed, the first one first.
        run_id: Of the run.
    """
    entries, now = [], datetime.now(UTC)

    def add(name, state, seconds):
        entry = {"run_id": run_id, "task_id": f"{len(entries)}", "display_name": name}
        times = {"end_time": (now + timedelta(seconds=seconds)).isoformat(), "state": state}
        entries.append(entry | times | {"child_tasks": [{"pod_name": f"run-{len(entries)}"}]})

    for number, step in enumerate(steps):
        path = [*_path_to(step, spec, spec.root.dag), "root"]
        add("executor", "FAILED", 10 * number)
        for level, name in enumerate(path):
            add(f"{name}-driver", "SUCCEEDED", -60)
            add(f"{name}(0)", "FAILED", 10 * number + level)
            add(name, "FAILED", 10 * number + level)
    return sorted(entries, key=lambda each: each["display_name"])


def _path_to(step, spec, graph):
    """Return a step and the graphs that it is in, from the inside out; [] if it is not there."""
    if step in graph.tasks:
        return [step]
    for name, task in graph.tasks.items():
        inner = spec.components[task.component_ref.name].dag
        if found := _path_to(step, spec, inner):
            return [*found, name]
    return []
