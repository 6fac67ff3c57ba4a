"""Build TorchServe archives (.mar): one file that holds decoder, settings, weights and engine.

A .mar is a zip. Ours is written here and not by torch-model-archiver, because that one drops the
folder of a package and writes the time into the file; from equal inputs ours is equal byte by byte.
"""

import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polarmask.config.settings import to_dict
from polarmask.engines.export import export_program
from polarmask.engines.interface import ENGINES, INT8_FILE, PROGRAM_FILE, SAFE_ENGINE
from polarmask.engines.quantize import quantize_program
from polarmask.engines.ranking import RANKING_FILE, EngineRanking
from polarmask.inference.model_folder import (
    CARD_FILE,
    WEIGHTS_FILE,
    ModelCard,
    load_model,
    read_card,
)
from polarmask.system.files import atomic_path, sha256_of_file
from polarmask_serving.archive.names import check_url_name
from polarmask_serving.archive.read import (
    DESCRIPTION,
    FORMAT,
    HANDLER,
    MANIFEST,
    MODEL_CONFIG,
    Archive,
)
from polarmask_serving.errors import ArchiveError

PACKAGES = ("polarmask", "polarmask_serving")
MODEL_FILES = (CARD_FILE, WEIGHTS_FILE)
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build_archive(
    model: Path,
    out: Path,
    *,
    name: str,
    version: str,
    engines: EngineRanking | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Archive:
    """Pack a model folder and the code that runs it.

    Args:
        model: Folder written by `polarmask.inference.model_folder.save_model`.
        out: The .mar to write; replaced as a whole.
        name: Model name in URLs: letters, digits, `.`, `_`, `-`.
        version: Model version in URLs, of the same letters.
        engines: What was measured of the engines; without it the folded network runs.
        metrics: Mask AP and related metrics in [0, 1], kept in the archive.

    Raises:
        ArchiveError: A name that fits no URL, a file of the model is missing, or `engines` is of
            another model.
        EngineError: The fastest engine needs an exported network, and it can't be exported here.
        ModelFormatError: The folder is no model, or one of an unknown format version.
    """
    check_url_name("name", name)
    check_url_name("version", version)
    card = read_card(model)
    absent = [file for file in MODEL_FILES if not (model / file).is_file()]
    if absent:
        raise ArchiveError(f"{model} has no {absent[0]}; train or fetch the model again")
    with tempfile.TemporaryDirectory() as folder:
        files = {f"model/{file}": model / file for file in MODEL_FILES}
        if engines is not None:
            added = _engine_files(model, engines, Path(folder))
            files |= {f"model/{file}": path for file, path in added.items()}
        entries: dict[str, Path | bytes] = {**files}
        for package in PACKAGES:
            root = _package_root(package)
            entries |= {f"{package}/{file.relative_to(root)}": file for file in root.rglob("*.py")}
        entries[HANDLER] = _package_root("polarmask_serving") / "torchserve" / HANDLER
        entries[MODEL_CONFIG] = _package_root("polarmask_serving") / "torchserve" / MODEL_CONFIG
        entries[MANIFEST] = _json(_manifest(name, version))
        entries[DESCRIPTION] = _json(_description(card, files, engines, metrics or {}))
        with atomic_path(out) as temporary:
            _pack(entries, temporary)
    return Archive(path=out, name=name, version=version, sha256=sha256_of_file(out))


def _engine_files(model: Path, engines: EngineRanking, folder: Path) -> dict[str, Path]:
    """Write the report and, if the fastest engine runs it, the exported network."""
    if engines.weights_sha256 != sha256_of_file(model / WEIGHTS_FILE):
        raise ArchiveError(
            f"the report of engines is of other weights than {model / WEIGHTS_FILE}; measure this "
            "model: `python -m polarmask_serving measure`"
        )
    files = {RANKING_FILE: folder / RANKING_FILE}
    files[RANKING_FILE].write_text(engines.to_json(), encoding="utf-8")
    fastest = ENGINES.get(engines.fastest_first[0]) if engines.fastest_first else None
    if fastest is not None and fastest.program:
        files[fastest.program] = folder / fastest.program
        export_program(load_model(model)[0], folder / PROGRAM_FILE)
        if fastest.program == INT8_FILE:
            quantize_program(folder / PROGRAM_FILE, engines.calibration, folder / INT8_FILE)
    return files


def _manifest(name: str, version: str) -> dict[str, Any]:
    return {
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


def _description(
    card: ModelCard,
    files: Mapping[str, Path],
    engines: EngineRanking | None,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    ranking = engines.fastest_first if engines is not None else ()
    code = importlib.metadata.metadata("polarmask-k8s")
    known = card.provenance
    content = {
        "config": to_dict(card.config),
        "categories": [asdict(category) for category in card.categories],
        "metrics": dict(metrics),
        "data_commit": known.get("data_commit", ""),
        "data_hash": known.get("data_hash", ""),
        "code_commit": known.get("code_commit", ""),
        "code_version": known.get("code_version", ""),
        "engine": ranking[0] if ranking else SAFE_ENGINE,
        "licence": {"code": code["License-Expression"], "model": known.get("licence", "")},
        "files": {name: sha256_of_file(path) for name, path in files.items()},
    }
    return FORMAT.stamp(content)


def _json(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, indent=2, sort_keys=True).encode()


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
