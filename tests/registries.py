"""What a model registry holds: archives to put in, and promotions read from its files."""

import json
import zipfile

from polarmask_components.storage.objects import open_objects
from polarmask_serving.archive.read import DESCRIPTION, HANDLER, MANIFEST, read_archive


def promotions_of(registry):
    """Return all promotions as plain data, oldest first."""
    found = open_objects(registry.where).read("champion.json")
    return [] if found is None else json.loads(found[0])["promotions"]


def make_archive(path, version, more=b"", model=None):
    """Write what counts as an archive of a model; the registry never looks at the model.

    Args:
        path: The .mar.
        version: Of the model.
        more: Bytes that make it another file.
        model: Model folder to put in; None takes bytes that are none.
    """
    manifest = {"modelName": "polarmask", "modelVersion": version, "handler": HANDLER}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, json.dumps({"model": manifest}))
        archive.writestr(DESCRIPTION, json.dumps({"format_version": 1}))
        if model is None:
            archive.writestr("model/model.safetensors", version.encode() * 1000 + more)
        for file in model.iterdir() if model else ():
            archive.write(file, f"model/{file.name}")
    return read_archive(path)
