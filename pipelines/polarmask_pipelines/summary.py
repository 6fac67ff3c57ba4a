"""What a local run leaves: files for people in its folder, summary.json for programs."""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polarmask.report.index import add_page, write_index
from polarmask.system.files import write_text
from polarmask_components.deploy.target import Deployment
from polarmask_pipelines.local_runner import TaskResult

SUMMARY = "summary.json"
_REUSABLE = ("ingest-coco", "precompute-rays", "train", "evaluate")
_PAGES = {
    "ingest-coco": "data",
    "precompute-rays": "labels",
    "train": "training",
    "evaluate": "evaluation",
    "evaluate-champion": "comparison",
    "measure-engines": "engines",
}


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
    """Name, seconds and status (succeeded, reused, failed or skipped), in the order in which the
    steps ended, skipped ones last; one entry for each pod of the labels."""
    gate: dict[str, Any] | None = None
    """`passed`, and `reason` in a sentence. A candidate that did not pass is not deployed."""
    nothing_changed: bool = False
    """Data, code and parameters are those of an earlier run, and the champion stays."""
    report: str | None = None
    overlay: str | None = None
    model: str | None = None
    champion: str | None = None
    """Version that is served after the run."""
    server_answer: dict[str, Any] | None = None
    """The server's answer to `sample`."""
    sample: str | None = None
    """A val image as PNG."""

    @property
    def is_stopped(self) -> bool:
        """Whether the gate stopped the candidate."""
        return self.gate is not None and not self.gate["passed"]

    def write(self, out: Path) -> None:
        """Write summary.json into the run folder, atomically."""
        write_text(out / SUMMARY, json.dumps(asdict(self), indent=1) + "\n")


def summarize(
    results: Sequence[TaskResult], names: AbstractSet[str], *, seconds: float, out: Path
) -> Summary:
    """Collect a run's numbers and copy the files that people look at into its folder.

    Pages of an earlier run in the same folder that this one did not make again are removed.

    Args:
        results: Of the steps that ended.
        names: Of all steps.
        seconds: Duration of the run.
        out: Run folder.
    """
    by_name = {result.name: result for result in results}
    skipped = [TaskResult(name, "skipped", 0.0, {}) for name in sorted(names - by_name.keys())]
    summary = Summary(
        seconds=round(seconds, 1),
        steps=[
            {"name": each.name, "seconds": round(each.seconds, 1), "status": each.status}
            for each in [*results, *skipped]
        ],
        nothing_changed=_nothing_changed(by_name),
    )
    outputs = {name: result.outputs for name, result in by_name.items() if result.outputs}
    for step, page in _PAGES.items():
        if step in outputs:
            text = Path(outputs[step]["page"].path).read_text(encoding="utf-8")
            add_page(out, f"reports/{page}.html", text)
        elif (earlier := out / "reports" / f"{page}.html").exists():
            earlier.unlink()
            write_index(out)
    if "train" in outputs:
        summary.model = _copy(outputs["train"]["model"].path, out / "model")
    if "evaluate" in outputs:
        evaluated = outputs["evaluate"]
        for name in ("mask_ap", "mask_ap50", "mask_ap75"):
            setattr(summary, name, evaluated["metrics"].metadata.get(name))
        summary.report = str(out / "reports" / "evaluation.html")
        summary.overlay = _copy(evaluated["overlay"].path, out / "overlay.png")
        summary.sample = _copy(evaluated["sample"].path, out / "sample.png")
    if "gate-model" in outputs:
        decided = outputs["gate-model"]
        summary.gate = {"passed": decided["Output"], "reason": verdict_in(decided)}
    return summary


def stopped_by_gate(ran: Collection[str]) -> bool:
    """Return whether the gate stopped a run, given the names of the steps that succeeded."""
    return "gate-model" in ran and "deploy-torchserve" not in ran


def verdict_in(outputs: Mapping[str, Any]) -> str:
    """Return the reason in the outputs of the gate."""
    return Path(outputs["verdict"].path).read_text(encoding="utf-8").splitlines()[0]


def _nothing_changed(by_name: Mapping[str, TaskResult]) -> bool:
    """Return whether the run stopped early, or reused all results and the champion stayed."""
    changed = by_name.get("check-changed")
    if changed is not None and changed.outputs.get("Output") is False:
        return True
    reused = all(name in by_name and by_name[name].status == "reused" for name in _REUSABLE)
    if not reused or any(result.status == "failed" for result in by_name.values()):
        return False
    before = by_name["evaluate-champion"].outputs["version"]
    deployed = by_name.get("deploy-torchserve")
    return deployed is None or deployed.outputs["answer"].metadata["version"] == before


def _copy(source: str, to: Path) -> str:
    """Copy a file or folder, in place of that of an earlier run; return where it is."""
    if to.is_dir():
        shutil.rmtree(to)
    if Path(source).is_dir():
        shutil.copytree(source, to)
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
    return str(to)


def deployed_in(results: Sequence[TaskResult]) -> Deployment | None:
    """Return what the run deployed."""
    for result in results:
        if result.name == "deploy-torchserve" and result.status == "succeeded":
            answer = result.outputs["answer"]
            content = json.loads(Path(answer.path).read_text(encoding="utf-8"))
            return Deployment(answer.metadata["version"], result.outputs["Output"], content)
    return None
