"""Label and field selectors of lists and watches."""

import re

_SET = re.compile(r"^([^\s!=]+)\s+(in|notin)\s+\(([^)]*)\)$")


def matches_labels(selector, labels):
    """Return whether labels (a dict or None) satisfy `a=b,c!=d,e in (f,g),h,!i`."""
    parts = re.split(r",(?![^(]*\))", selector) if selector else []
    return all(_holds(part.strip(), labels or {}) for part in parts if part.strip())


def _holds(part, labels):
    if found := _SET.match(part):
        values = {value.strip() for value in found[3].split(",")}
        return (labels.get(found[1]) in values) == (found[2] == "in")
    if "!=" in part:
        key, value = part.split("!=", 1)
        return labels.get(key.strip()) != value.strip()
    if "=" in part:
        key, value = re.split("==?", part, maxsplit=1)
        return labels.get(key.strip()) == value.strip()
    return part[1:] not in labels if part.startswith("!") else part in labels


def matches_fields(selector, obj):
    """Return whether an object satisfies `metadata.name=a,status.phase!=Failed`."""
    for part in (selector or "").split(","):
        if not part:
            continue
        path, operator, wanted = re.split("(!=|==?)", part, maxsplit=1)
        found = obj
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if (str(found or "") == wanted) == (operator == "!="):
            return False
    return True


def matches_map(wanted, labels):
    """Return whether labels include all of a Service's or a Deployment's `matchLabels`."""
    return all((labels or {}).get(key) == value for key, value in wanted.items())
