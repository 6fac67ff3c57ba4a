"""Amounts of resources."""

import re

_QUANTITY = re.compile(r"^([0-9.]+)([a-zA-Z]*)$")
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {f"{letter}i": 1024 ** (power + 1) for power, letter in enumerate("KMGT")}


def quantity(text):
    """Return a quantity as a number: `500m`, `16Gi`, `2`."""
    number, unit = _QUANTITY.match(str(text)).groups()
    return float(number) * _UNITS[unit]


def requests_of(pod_spec):
    """Return the sum of the containers' requests; a limit replaces a missing request."""
    total = {}
    for container in pod_spec["containers"]:
        resources = container.get("resources") or {}
        asked = {**resources.get("limits", {}), **resources.get("requests", {})}
        for name, amount in asked.items():
            total[name] = total.get(name, 0) + quantity(amount)
    return total
