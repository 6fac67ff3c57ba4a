"""What a run came to: words for each step, files for people, summary.json for programs."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polarmask_components.deploy.local_server import Deployment
from polarmask_pipelines.watch import TaskResult

SUMMARY = "summary.json"
_REUSABLE = ("ingest-coco", "precompute-rays", "train", "evaluate")
_PAGES = {"ingest-coco": "data", "precompute-rays": "labels", "evaluate": "evaluation"}


def describe(result: TaskResult) -> str:
    """Return the outcome of a step in a few words."""
    if result.status == "failed":
        return ""
    outputs = result.outputs
    match result.name:
        case "resolve-data":
            return f"data {outputs['data_hash'][:8]} of commit {outputs['data_commit'][:8]}"
        case "check-changed":
            return Path(outputs["note"].path).read_text(encoding="utf-8").strip()
        case "ingest-coco":
            facts = outputs["dataset"].metadata
            problems = int(facts["train_problems"] + facts["val_problems"])
            found = f", {problems} problems" if problems else ""
            return f"{facts['train_images']:g} train and {facts['val_images']:g} val images{found}"
        case "precompute-part":
            return f"part {outputs['shards'].metadata['part']}, shards: {outputs['Output']:g}"
        case "precompute-rays":
            facts = outputs["metrics"].metadata
            return (
                f"{facts['train_instances']:g} train instances, "
                f"reachable mask IoU {facts['train_upper_bound_iou']:.3f}"
            )
        case "check-champion":
            return str(outputs["Output"])
        case "evaluate":
            facts = outputs["metrics"].metadata
            return f"mask AP {facts['mask_ap']:.3f}, AP50 {facts['mask_ap50']:.3f}"
        case "evaluate-champion":
            return Path(outputs["note"].path).read_text(encoding="utf-8").strip()
        case "gate-model":
            reason = Path(outputs["verdict"].path).read_text(encoding="utf-8").splitlines()[0]
            return f"{'passed' if outputs['Output'] else 'stopped'}: {reason}"
        case "measure-engines":
            return f"fastest first: {outputs['Output']}"
        case "deploy-torchserve":
            return f"version {outputs['answer'].metadata['version']} answers at {outputs['Output']}"
    return ""


@dataclass
class Summary:
    """Content of summary.json. Paths are absolute; None where the run did not get that far."""

    mask_ap: float | None = None
    """COCO mask AP of the candidate on the val split, in [0, 1]."""
    mask_ap50: float | None = None
    mask_ap75: float | None = None
    seconds: float = 0.0
    """From the first step to the last, set-up excluded."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Name, seconds and status: succeeded, reused, failed or skipped; one for each part."""
    nothing_changed: bool = False
    """Data, code and parameters are those of an earlier run, and the champion stays."""
    report: str | None = None
    overlay: str | None = None
    model: str | None = None
    champion: str | None = None
    """Version that is served after the run."""
    server_answer: dict[str, Any] | None = None
    """What the server says to `sample`."""
    sample: str | None = None
    """A val image as PNG."""

    def write(self, out: Path) -> None:
        """Write summary.json into the run folder, as a whole."""
        temporary = out / f".{SUMMARY}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(out / SUMMARY)


def summarize(
    results: Sequence[TaskResult], names: Sequence[str], *, seconds: float, out: Path
) -> Summary:
    """Collect a run's numbers and copy what people look at into its folder.

    Args:
        results: Of the steps that ended.
        names: Of all steps, in order.
        seconds: That the run took.
        out: Run folder.
    """
    by_name = {result.name: result for result in results}
    summary = Summary(seconds=round(seconds, 1))
    for name in names:
        ended = [result for result in results if result.name == name]
        summary.steps += [
            {"name": name, "seconds": round(result.seconds, 1), "status": result.status}
            for result in ended
        ] or [{"name": name, "seconds": 0.0, "status": "skipped"}]
    outputs = {name: result.outputs for name, result in by_name.items() if result.outputs}
    for step, page in _PAGES.items():
        if step in outputs:
            _keep(outputs[step]["page"].path, out / "reports" / f"{page}.html")
    if "train" in outputs:
        summary.model = str(_keep(outputs["train"]["model"].path, out / "model"))
    if "evaluate" in outputs:
        facts = outputs["evaluate"]["metrics"].metadata
        summary.mask_ap = facts["mask_ap"]
        summary.mask_ap50 = facts["mask_ap50"]
        summary.mask_ap75 = facts["mask_ap75"]
        summary.report = str(out / "reports" / "evaluation.html")
        summary.overlay = str(_keep(outputs["evaluate"]["overlay"].path, out / "overlay.png"))
        summary.sample = str(_keep(outputs["evaluate"]["sample"].path, out / "sample.png"))
    summary.nothing_changed = _nothing_changed(by_name)
    return summary


def _nothing_changed(by_name: Mapping[str, TaskResult]) -> bool:
    """Tell whether the run stopped, or reused every step that can be and the champion stayed."""
    changed = by_name.get("check-changed")
    if changed is not None and changed.outputs.get("Output") is False:
        return True
    reused = all(name in by_name and by_name[name].status == "reused" for name in _REUSABLE)
    if not reused or any(result.status == "failed" for result in by_name.values()):
        return False
    before = by_name["evaluate-champion"].outputs["version"]
    deployed = by_name.get("deploy-torchserve")
    return deployed is None or deployed.outputs["answer"].metadata["version"] == before


def _keep(source: str | Path, to: Path) -> Path:
    """Copy a file or folder to where people look for it, in place of an earlier run's."""
    if to.is_dir():
        shutil.rmtree(to)
    if Path(source).is_dir():
        shutil.copytree(source, to)
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
    return to


def deployed_in(results: Sequence[TaskResult]) -> Deployment | None:
    """Return what the run put into service."""
    for result in results:
        if result.name == "deploy-torchserve" and result.status == "succeeded":
            answer = result.outputs["answer"]
            said = json.loads(Path(answer.path).read_text(encoding="utf-8"))
            return Deployment(answer.metadata["version"], result.outputs["Output"], said)
    return None


def shorten(value: object) -> object:
    """Cut long lists of an answer, for printing."""
    if isinstance(value, dict):
        return {key: shorten(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > 4:
        return [*map(shorten, value[:2]), f"... {len(value) - 2} more"]
    if isinstance(value, list):
        return [shorten(item) for item in value]
    return value
