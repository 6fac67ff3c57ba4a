"""What a model registry holds, read from its files."""

import json

from polarmask_components.storage.objects import open_objects


def promotions_of(registry):
    """Return all promotions as plain data, oldest first."""
    found = open_objects(registry.where).read("champion.json")
    return [] if found is None else json.loads(found[0])["promotions"]
