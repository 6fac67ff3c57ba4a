"""What of a split is used, what was left out, and why.

Every command, page, JSON file and pipeline step shows a `SplitSummary` (ADR 0024).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Literal

from polarmask.errors import DataError
from polarmask.system.files import printable

_EXAMPLES = 3

Item = Literal["image", "object", "category"]
_PLURALS: dict[Item, str] = {"image": "images", "object": "objects", "category": "categories"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the data."""

    item: Item
    """What is left out or used with a change; crowd regions count as objects."""
    kind: str
    """Stable identifier, for counting."""
    where: str
    detail: str
    kept: bool = False
    """Whether the item is used nevertheless."""

    def __post_init__(self) -> None:
        """Make texts that can be printed: names of files may be no UTF-8."""
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "detail", printable(self.detail))


@dataclass(frozen=True, slots=True)
class ProblemCount:
    """How often a kind of problem occurs."""

    item: Item
    kind: str
    kept: bool
    count: int
    examples: tuple[str, ...]
    """The first places with details."""

    def describe(self) -> str:
        """Return one line."""
        items = self.item if self.count == 1 else _PLURALS[self.item]
        action = "kept" if self.kept else "left out"
        more = f"; and {self.count - len(self.examples):,} more"
        places = "; ".join(self.examples) + (more if self.count > len(self.examples) else "")
        return f"{self.kind}: {self.count:,} {items} {action} - {places}"


def count_problems(problems: Iterable[Problem]) -> tuple[ProblemCount, ...]:
    """Count problems by kind: what is left out first, then the most frequent."""

    def kind_of(problem: Problem) -> tuple[Any, ...]:
        return problem.kept, problem.item, problem.kind

    counts = []
    for (kept, item, kind), group in groupby(sorted(problems, key=kind_of), kind_of):
        found = list(group)
        first = tuple(f"{problem.where}: {problem.detail}" for problem in found[:_EXAMPLES])
        counts.append(ProblemCount(item, kind, kept, len(found), first))
    return _ordered(counts)


def _ordered(counts: Iterable[ProblemCount]) -> tuple[ProblemCount, ...]:
    return tuple(sorted(counts, key=lambda each: (each.kept, -each.count)))


def describe_problems(problems: Iterable[Problem]) -> str:
    """Return one line a kind, with the first few places."""
    lines = [count.describe() for count in count_problems(problems)]
    return "\n".join(lines) or "no problems found"


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """A split in numbers: what its file lists, what is used, and what is wrong with the rest."""

    split: str
    listed_images: int
    """In the file, usable or not."""
    listed_objects: int
    """As above, crowd regions included."""
    images: int
    """Used."""
    objects: int
    """Used, crowd regions not counted."""
    crowds: int
    """Crowd regions used."""
    problems: tuple[ProblemCount, ...] = ()

    @property
    def left_out_images(self) -> int:
        """Number of images left out."""
        return self.listed_images - self.images

    @property
    def left_out_objects(self) -> int:
        """Number of objects and crowd regions left out, those of left-out images included."""
        return self.listed_objects - self.objects - self.crowds

    def plus(self, problems: Iterable[Problem]) -> "SplitSummary":
        """Return the summary with further problems; the caller corrects the counts."""
        found = {(each.item, each.kind, each.kept): each for each in self.problems}
        for new in count_problems(problems):
            key = (new.item, new.kind, new.kept)
            old = found.get(key, replace(new, count=0, examples=()))
            examples = (*old.examples, *new.examples)[:_EXAMPLES]
            found[key] = replace(new, count=old.count + new.count, examples=examples)
        return replace(self, problems=_ordered(found.values()))

    def merged(self, other: "SplitSummary") -> "SplitSummary":
        """Return the summary with the problems of a second look at the same file."""
        found: dict[tuple[str, str, bool], ProblemCount] = {}
        for each in (*self.problems, *other.problems):
            key = (each.item, each.kind, each.kept)
            found[key] = max(found.get(key, each), each, key=lambda count: count.count)
        return replace(self, problems=_ordered(found.values()))

    def describe(self) -> str:
        """Return the counts, and a line for each kind of problem."""
        nothing = "" if any(not each.kept for each in self.problems) else "; nothing left out"
        return "\n  ".join([f"{self.split}: {self._counts()}{nothing}", *self.lines()])

    def _counts(self) -> str:
        crowds = f"{self.crowds:,} crowd region{'' if self.crowds == 1 else 's'}"
        images, objects = f"{self.images:,} images", f"{self.objects:,} objects"
        if self.left_out_images or self.left_out_objects:
            images = f"{self.images:,} of {self.listed_images:,} images"
            objects = f"{self.objects + self.crowds:,} of {self.listed_objects:,} objects"
            crowds = f"{crowds} among them"
        return f"{images}, {objects}, {crowds}" if self.listed_objects else images

    def lines(self) -> list[str]:
        """Return a line for each kind of problem."""
        own = sum(each.count for each in self.problems if each.item == "object" and not each.kept)
        with_images = self.left_out_objects - own
        lines = [each.describe() for each in self.problems]
        if with_images > 0:
            lines.append(f"{with_images:,} objects left out with their images")
        return lines

    def check(self, max_left_out: float, *, setting: str) -> None:
        """Refuse a split of which too much was left out.

        Args:
            max_left_out: Largest share of the images, and of the objects, in [0, 1].
            setting: Flag or parameter that asks for it, for the message.

        Raises:
            DataError: More was left out.
        """
        shares = (
            self.left_out_images / max(1, self.listed_images),
            self.left_out_objects / max(1, self.listed_objects),
        )
        if max(shares) > max_left_out:
            raise DataError(
                f"split {self.split}: {self.left_out_images:,} of {self.listed_images:,} images "
                f"and {self.left_out_objects:,} of {self.listed_objects:,} objects are left out, "
                f"more than {setting} allows; repair the data or change that: "
                + "; ".join(self.lines())
            )

    def require_complete(self, *, strict: bool) -> None:
        """Raise DataError if something was left out, and `--strict` refuses that."""
        if strict:
            self.check(0, setting="--strict")

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        left_out = {"images": self.left_out_images, "objects": self.left_out_objects}
        return {**asdict(self), "left_out": left_out}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "SplitSummary":
        """Read what `to_json` returned."""
        values = {name: value for name, value in plain.items() if name != "left_out"}
        counts = [{**each, "examples": tuple(each["examples"])} for each in values["problems"]]
        values["problems"] = tuple(ProblemCount(**each) for each in counts)
        return cls(**values)


def results_cut(where: str, limit: int) -> Problem:
    """Return the note that an image may have more instances than a model returns."""
    return Problem("image", "results_cut", where, describe_cut(limit), kept=True)


def describe_cut(limit: int) -> str:
    """Return in words that a model's limit of instances was reached."""
    return f"more than {limit:,} instances; raise postprocess.max_instances"


def summary_of_files(given: int, problems: Sequence[Problem]) -> SplitSummary:
    """Return the summary of image files without annotations.

    Args:
        given: Number of files.
        problems: One for each file that was left out, and notes.
    """
    used = given - sum(not problem.kept for problem in problems)
    return SplitSummary(
        split="image files",
        listed_images=given,
        listed_objects=0,
        images=used,
        objects=0,
        crowds=0,
        problems=count_problems(problems),
    )


def summary_counts(summaries: Iterable[SplitSummary]) -> dict[str, int]:
    """Return numbers under stable names, such as `val_left_out_images`, for pipeline artifacts."""
    names = ("images", "objects", "crowds", "left_out_images", "left_out_objects")
    return {f"{each.split}_{name}": getattr(each, name) for each in summaries for name in names}
