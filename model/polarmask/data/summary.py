"""What of a split is used, what was left out, and why.

Every command, page, JSON file and pipeline step shows a `SplitSummary` (ADR 0024).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
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


def count_problems(
    problems: Iterable[Problem], *, examples: int = _EXAMPLES
) -> tuple[ProblemCount, ...]:
    """Count problems by kind: what is left out first, then the most frequent."""

    def kind_of(problem: Problem) -> tuple[Any, ...]:
        return problem.kept, problem.item, problem.kind

    counts = []
    for (kept, item, kind), group in groupby(sorted(problems, key=kind_of), kind_of):
        found = list(group)
        first = tuple(f"{problem.where}: {problem.detail}" for problem in found[:examples])
        counts.append(ProblemCount(item, kind, kept, len(found), first))
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

    def describe(self) -> str:
        """Return the counts, and a line for each kind of problem."""
        crowds = f"{self.crowds:,} crowd region{'' if self.crowds == 1 else 's'}"
        images, objects = f"{self.images:,} images", f"{self.objects:,} objects"
        if self.left_out_images or self.left_out_objects:
            images = f"{self.images:,} of {self.listed_images:,} images"
            objects = f"{self.objects + self.crowds:,} of {self.listed_objects:,} objects"
            crowds = f"{crowds} among them"
        nothing = "" if any(not each.kept for each in self.problems) else "; nothing left out"
        return "\n".join([f"{self.split}: {images}, {objects}, {crowds}{nothing}", *self.lines()])

    def lines(self) -> list[str]:
        """Return a line for each kind of problem."""
        own = sum(each.count for each in self.problems if each.item == "object" and not each.kept)
        with_images = self.left_out_objects - own
        lines = [each.describe() for each in self.problems]
        if with_images > 0:
            lines.append(f"{with_images:,} objects left out with their images")
        return [f"  {line}" for line in lines]

    def check(self, max_left_out: float, *, setting: str) -> None:
        """Refuse a split of which too much was left out.

        Args:
            max_left_out: Largest share of the images, and of the objects, in [0, 1].
            setting: Name of the flag or parameter that sets it, for the message.

        Raises:
            DataError: More was left out.
        """
        shares = (
            self.left_out_images / max(1, self.listed_images),
            self.left_out_objects / max(1, self.listed_objects),
        )
        if max(shares) > max_left_out:
            raise DataError(
                f"{self.left_out_images:,} of {self.listed_images:,} images and "
                f"{self.left_out_objects:,} of {self.listed_objects:,} objects of the split "
                f"{self.split} are left out; {setting} allows {max_left_out:.3g}. Repair the "
                "data, or change it:\n" + "\n".join(self.lines())
            )

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
