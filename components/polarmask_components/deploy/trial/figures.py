"""Compare the logs of two versions during a trial, and decide. Pure: lines in, values out.

Each request is a line of the server's log (`polarmask_serving.answer.request_log`). A request that
was copied has the same id on both sides, and both lines list what was found.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polarmask.evaluation.gate import Verdict
from polarmask_components.deploy.trial.settings import TrialSettings

_SAME = 0.5
"""Box IoU from which on two instances are the same object."""
_EARLY = 20
"""Requests from which on a trial may end before its time, if it fails."""

Found = Sequence[Sequence[float]]
"""Category id, score, left, top, width, height; best score first."""


@dataclass
class Requests:
    """Requests of one version, from its pods' logs; lines may come several times."""

    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)
    _ambiguous: set[str] = field(default_factory=set)

    def read(self, lines: Iterable[str]) -> None:
        """Add requests; ids that clients gave to several requests are left out."""
        for line in lines:
            entry = _request_of(line)
            if entry is None:
                continue
            name = entry["request_id"]
            known = self.by_id.setdefault(name, entry)
            if known != entry:
                self._ambiguous.add(name)
        for name in self._ambiguous:
            self.by_id.pop(name, None)

    def forget(self, names: Iterable[str]) -> None:
        """Leave out requests of before."""
        self._ambiguous |= set(names)
        for name in self._ambiguous:
            self.by_id.pop(name, None)


def _request_of(line: str) -> dict[str, Any] | None:
    try:
        request = json.loads(line)["request"]
        if isinstance(request["request_id"], str) and isinstance(request["seconds"], dict):
            int(request["status"])
            return dict(request)
    except (ValueError, KeyError, TypeError):
        pass
    return None


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one version did."""

    requests: int
    errors: int
    """The server's fault, not the client's."""
    instances: float
    """By image, on average."""
    p50: float
    """Seconds in the model, from decoding the image to writing the answer."""
    p95: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The result of a trial."""

    compared: int
    """Requests of which both versions' answers are known; of a share, those the candidate had."""
    unanswered: int
    """Copies of which no answer of the candidate is known."""
    agreement: float | None
    """Share of all instances of both that have a partner; None where nothing was copied."""
    mean_iou: float | None
    """Of boxes of partners."""
    candidate: Side
    stable: Side


def figures_of(
    stable: Mapping[str, Mapping[str, Any]],
    candidate: Mapping[str, Mapping[str, Any]],
    *,
    due: Iterable[str],
    copies: bool,
) -> Figures:
    """Compare.

    Args:
        stable: Requests of the stable version, by id.
        candidate: Of the candidate.
        due: Ids of requests so old that the candidate's line has to be there, too.
        copies: Whether the candidate got copies, or requests of its own.
    """
    if not copies:
        own = {name: each for name, each in stable.items() if name not in candidate}
        return Figures(
            compared=len(candidate),
            unanswered=0,
            agreement=None,
            mean_iou=None,
            candidate=_side(candidate),
            stable=_side(own),
        )
    copied = {name: each for name, each in stable.items() if "found" in each}
    both = copied.keys() & candidate.keys()
    answered = [n for n in sorted(both) if {copied[n]["status"], candidate[n]["status"]} == {200}]
    partners, instances = [], 0
    for name in answered:
        for one, other in zip(copied[name]["found"], candidate[name]["found"], strict=True):
            partners += match(one, other)
            instances += len(one) + len(other)
    return Figures(
        compared=len(both),
        unanswered=sum(name in copied and name not in candidate for name in due),
        agreement=2 * len(partners) / instances if instances else 1.0,
        mean_iou=sum(partners) / len(partners) if partners else None,
        candidate=_side({name: candidate[name] for name in both}),
        stable=_side({name: copied[name] for name in both}),
    )


def match(one: Found, other: Found) -> list[float]:
    """Return the box IoU of each pair of partners: same category, IoU at least 0.5, best first."""
    free, pairs = list(other), []
    for instance in one:
        rated = [(_iou(instance, each), at) for at, each in enumerate(free)]
        iou, at = max(rated, default=(0.0, -1))
        if iou >= _SAME:
            pairs.append(iou)
            del free[at]
    return pairs


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    if one[0] != other[0]:
        return 0.0
    (left, top, width, height), (left_, top_, width_, height_) = one[2:6], other[2:6]
    across = min(left + width, left_ + width_) - max(left, left_)
    down = min(top + height, top_ + height_) - max(top, top_)
    shared = max(0.0, across) * max(0.0, down)
    union = width * height + width_ * height_ - shared
    return shared / union if union > 0 else 0.0


def _side(requests: Mapping[str, Mapping[str, Any]]) -> Side:
    good = [each for each in requests.values() if each["status"] == 200]
    seconds = sorted(sum(each["seconds"].values()) for each in good)
    counts = [image.get("instances", 0) for each in good for image in each["images"]]
    return Side(
        requests=len(requests),
        errors=sum(each["status"] >= 500 for each in requests.values()),
        instances=sum(counts) / len(counts) if counts else 0.0,
        p50=_percentile(seconds, 0.5),
        p95=_percentile(seconds, 0.95),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def decide_trial(figures: Figures, settings: TrialSettings, *, over: bool = True) -> Verdict:
    """Decide whether the candidate may take over.

    Args:
        figures: Of the trial.
        settings: Its limits.
        over: False while the trial runs: then few requests are no reason to stop it.
    """
    failed = figures.candidate.errors + figures.unanswered
    seen = figures.compared + figures.unanswered
    enough = settings.min_requests if over else max(settings.min_requests, _EARLY)
    if seen < enough:
        text = f"only {seen} requests reached the candidate, {enough} are needed"
        return Verdict(not over, text + "; wait for more traffic, or lower min_requests")
    summary = describe(figures)
    if failed > settings.max_errors * seen:
        return Verdict(False, f"it failed at {failed} of {seen} requests; {summary}")
    if figures.agreement is not None and figures.agreement < settings.min_agreement:
        return Verdict(False, f"it agrees too little (below {settings.min_agreement:g}); {summary}")
    if figures.candidate.p95 > settings.max_slowdown * figures.stable.p95 > 0:
        return Verdict(False, f"it is too slow (above {settings.max_slowdown:g} times); {summary}")
    return Verdict(True, summary)


def describe(figures: Figures) -> str:
    """Return the figures in one sentence."""
    new, old = figures.candidate, figures.stable
    text = f"{figures.compared} requests compared, {new.errors} errors"
    if figures.unanswered:
        text += f", {figures.unanswered} copies not answered"
    if figures.agreement is not None:
        text += f", {figures.agreement:.3f} of the instances agree"
    if figures.mean_iou is not None:
        text += f" (mean box IoU {figures.mean_iou:.3f})"
    text += f", {new.instances:.1f} instances an image (stable {old.instances:.1f})"
    return text + (
        f", median {1000 * new.p50:.0f} ms (stable {1000 * old.p50:.0f}), "
        f"95 % within {1000 * new.p95:.0f} ms (stable {1000 * old.p95:.0f})"
    )
