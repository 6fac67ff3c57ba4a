"""Compare the categories of splits, models and data: before work starts, and everywhere alike.

A detector answers with category ids. Where an id means something else, or an object has a category
that nobody learned, mask AP is low without an error.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from polarmask.data.coco import Category, CocoData
from polarmask.data.summary import Problem
from polarmask.errors import DataError


def match_categories(known: Sequence[Category], data: CocoData, *, known_by: str) -> CocoData:
    """Return a split with notes in its summary about the categories that only one side has.

    Args:
        known: Categories that a model or another split has.
        data: The split.
        known_by: Whose they are, for messages: "the model", "the train split".

    Raises:
        DataError: They contradict each other, or no object of the split has a known category.
    """
    place = f"{data.root}, split {data.split}"
    require_same_meaning(known, data.categories, known_by=known_by, place=place)
    ids = {category.id for category in known}
    objects_of = dict(zip(data.categories, data.object_counts, strict=True))
    if not any(count for category, count in objects_of.items() if category.id in ids):
        raise DataError(
            f"{place}: no object has a category of {known_by} ({_names(known)}), all have others "
            f"({_names(each for each in objects_of if objects_of[each])}); "
            "give data with the same categories"
        )
    notes = [
        Problem(
            "category",
            "category_unknown",
            f"category {category.id} ({category.name})",
            f"{known_by} does not have it, so its {count:,} objects can't be found",
            kept=True,
        )
        for category, count in objects_of.items()
        if count and category.id not in ids
    ]
    here = {category.id for category in data.categories}
    notes += [
        Problem(
            "category",
            "category_not_in_split",
            f"category {category.id} ({category.name})",
            f"only {known_by} has it; what is found of it does not count",
            kept=True,
        )
        for category in known
        if category.id not in here
    ]
    return replace(data, summary=data.summary.plus(notes))


def require_same_meaning(
    known: Sequence[Category], found: Sequence[Category], *, known_by: str, place: str
) -> None:
    """Raise DataError unless some ids agree, and no id or name means something else."""
    names = {category.id: category.name for category in known}
    for category in found:
        if names.get(category.id, category.name) != category.name:
            raise DataError(
                f"{place}: category {category.id} is {category.name!r}, for {known_by} it is "
                f"{names[category.id]!r}; give each category the same id and name everywhere"
            )
    ids_of, known_ids_of = _ids_by_name(found), _ids_by_name(known)
    for name in ids_of.keys() & known_ids_of.keys():
        if not ids_of[name] & known_ids_of[name]:
            raise DataError(
                f"{place}: {name!r} is category {min(ids_of[name])}, for {known_by} it is "
                f"{min(known_ids_of[name])}; give each category the same id and name everywhere"
            )
    if not any(category.id in names for category in found):
        raise DataError(
            f"{place}: it shares no category with {known_by}, which has {_names(known)}; here are "
            f"{_names(found)}. Give data with the same categories"
        )


def _ids_by_name(categories: Iterable[Category]) -> dict[str, set[int]]:
    ids: dict[str, set[int]] = defaultdict(set)
    for category in categories:
        ids[category.name].add(category.id)
    return ids


def _names(categories: Iterable[Category], most: int = 5) -> str:
    names = [category.name for category in categories]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))
