"""Build and read TorchServe archives (.mar): one file that holds decoder, settings and weights.

A .mar is a zip. Ours is written here and not by torch-model-archiver, because that one drops the
folder of a package and writes the time into the file; from equal inputs ours is equal byte by byte.

    MAR-INF/MANIFEST.json      name, version, which file is the handler
    model-config.yaml          time limits
    polarmask_handler.py       TorchServe imports a handler by its file stem
    polarmask/  polarmask_serving/        the code, under its own names
    model/model.json  model/model.safetensors
"""

import importlib.util
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from polarmask.files import atomic_path, sha256_of_file
from polarmask.model_folder import read_card
from polarmask_serving.errors import ArchiveError
from polarmask_serving.names import check_url_name

HANDLER = "polarmask_handler.py"
MODEL_CONFIG = "model-config.yaml"
MANIFEST = "MAR-INF/MANIFEST.json"
PACKAGES = ("polarmask", "polarmask_serving")
MODEL_FILES = ("model.json", "model.safetensors")
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Archive:
    """A finished .mar."""

    path: Path
    name: str
    """Model name; a part of the URL."""
    version: str
    """Model version; a part of the URL."""
    sha256: str
    """Hex digest of the file."""


def build_archive(model: Path, out: Path, *, name: str, version: str) -> Archive:
    """Pack a model folder and the code that runs it.

    Args:
        model: Folder written by `polarmask.model_folder.save_model`.
        out: The .mar to write; replaced as a whole.
        name: Model name in URLs: letters, digits, `.`, `_`, `-`.
        version: Model version in URLs, of the same letters.

    Raises:
        ArchiveError: A name that fits no URL, or a file of the model is missing.
        ModelFormatError: The folder is no model, or one of an unknown format version.
    """
    check_url_name("name", name)
    check_url_name("version", version)
    read_card(model)
    absent = [file for file in MODEL_FILES if not (model / file).is_file()]
    if absent:
        raise ArchiveError(f"{model} has no {absent[0]}; train or fetch the model again")
    entries: dict[str, Path | bytes] = {f"model/{file}": model / file for file in MODEL_FILES}
    for package in PACKAGES:
        root = _package_root(package)
        entries |= {f"{package}/{file.relative_to(root)}": file for file in root.rglob("*.py")}
    entries[HANDLER] = _package_root("polarmask_serving") / HANDLER
    entries[MODEL_CONFIG] = _package_root("polarmask_serving") / MODEL_CONFIG
    manifest = {
        "createdOn": "01/01/1980 00:00:00",  # required, and a real time would change the bytes
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": name,
            "modelVersion": version,
            "handler": HANDLER,
            "configFile": MODEL_CONFIG,
        },
    }
    entries[MANIFEST] = json.dumps(manifest, indent=2, sort_keys=True).encode()
    with atomic_path(out) as temporary:
        _pack(entries, temporary)
    return Archive(path=out, name=name, version=version, sha256=sha256_of_file(out))


def _package_root(package: str) -> Path:
    """Return the folder a package is imported from, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ArchiveError(f"the package {package} is not installed; run `make setup`")
    return Path(spec.origin).parent


def _pack(entries: dict[str, Path | bytes], out: Path) -> None:
    """Write a zip with sorted names, fixed times and fixed rights; stored: weights don't shrink."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            entry = entries[name]
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # Unix, wherever it is built
            info.external_attr = 0o644 << 16
            if isinstance(entry, bytes):
                archive.writestr(info, entry)
                continue
            info.file_size = entry.stat().st_size  # lets zipfile foresee entries beyond 2 GiB
            with entry.open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def read_archive(path: Path) -> Archive:
    """Describe an existing .mar.

    Raises:
        ArchiveError: No such file, no zip, or not an archive of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read(MANIFEST))["model"]
        name, version, handler = model["modelName"], model["modelVersion"], model["handler"]
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ArchiveError(
            f"{path} is no model archive ({error}); build one with "
            "`python -m polarmask_serving archive`"
        ) from error
    if handler != HANDLER:
        raise ArchiveError(f"{path} runs {handler}, not {HANDLER}: it is no PolarMask archive")
    return Archive(path=path, name=str(name), version=str(version), sha256=sha256_of_file(path))
