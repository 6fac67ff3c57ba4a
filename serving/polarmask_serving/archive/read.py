"""What a TorchServe archive (.mar) holds, and reading one. Imports no torch.

    MAR-INF/MANIFEST.json      TorchServe's: name, version, which file is the handler
    polarmask-archive.json     ours: what the model is, hashes of its files
    model-config.yaml          time limits
    polarmask_handler.py       TorchServe imports a handler by its file stem
    polarmask/  polarmask_serving/        the code, under its own names
    model/model.json  model/model.safetensors
    model/engines.json         what was measured of the engines, if anything
    model/engines/*.onnx       the program that the fastest engine runs, if it runs one

`archive.build` builds them.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarmask.system.files import check_zip, sha256_of_file
from polarmask.system.formats import JsonFormat
from polarmask_serving.archive.names import check_url_name
from polarmask_serving.errors import ArchiveError

FORMAT = JsonFormat(
    1,
    ArchiveError,
    "use the release that built it, or build it again: `python -m polarmask_serving archive`",
)
HANDLER = "polarmask_handler.py"
MODEL_CONFIG = "model-config.yaml"
MANIFEST = "MAR-INF/MANIFEST.json"
DESCRIPTION = "polarmask-archive.json"
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, AttributeError)


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


def read_archive(path: Path) -> Archive:
    """Describe an existing .mar.

    Raises:
        ArchiveError: No such file, no zip, not an archive of ours, or of an unknown format version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, size=path.stat().st_size)
            model = json.loads(archive.read(MANIFEST))["model"]
            name, version, handler = model["modelName"], model["modelVersion"], model["handler"]
            if handler != HANDLER:
                raise ArchiveError(
                    f"{path} runs {handler}, not {HANDLER}: it is no PolarMask archive"
                )
            FORMAT.load(archive.read(DESCRIPTION), where=path)
    # RuntimeError: nested too deeply, encrypted, or packed in an unknown way.
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise ArchiveError(
            f"{path} is no model archive ({error}); build one with "
            "`python -m polarmask_serving archive`"
        ) from error
    # Both become parts of URLs and of TorchServe's configuration.
    for what, value in {"name": name, "version": version}.items():
        check_url_name(what, str(value))
    return Archive(path=path, name=str(name), version=str(version), sha256=sha256_of_file(path))


def check_unpacked(folder: Path) -> dict[str, Any]:
    """Return the description of an unpacked archive, whose model files are those it was made of.

    Raises:
        ArchiveError: It is of an unknown format version, or a file is missing or was changed.
    """
    try:
        described = folder / DESCRIPTION
        description = FORMAT.load(described.read_text(encoding="utf-8"), where=described)
        files: dict[str, str] = description["files"]
        changed = [
            name for name, sha256 in files.items() if sha256_of_file(folder / name) != sha256
        ]
    except _UNREADABLE as error:
        raise ArchiveError(
            f"{folder} holds no whole archive ({error}); unpack it again, or build it again"
        ) from error
    if changed:
        raise ArchiveError(
            f"{folder / changed[0]} is not what was packed; unpack the archive again"
        )
    return description
