"""Measure engines: time them, compare their outputs with eager float32, and rank them.

Engines take turns, and the best time of several rounds counts, so that other load on the machine
slows all of them alike. Engines in half precision or 8 bits must also keep the model's mask AP on
real images.

Dimension key
    B: images    H, W: rows and columns of the network's input    3: channels
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polarmask.data.coco import CocoData, load_coco
from polarmask.data.images import read_image
from polarmask.engines.export import export_program
from polarmask.engines.interface import (
    ENGINES,
    INT8_FILE,
    PROGRAM_FILE,
    Engine,
    EngineError,
    EngineKind,
)
from polarmask.engines.load import make_engine
from polarmask.engines.machine import cpu_name
from polarmask.engines.quantize import Calibration, calibrate, quantize_program
from polarmask.engines.ranking import EngineRanking, EngineResult
from polarmask.engines.torch_engines import Eager
from polarmask.evaluation.evaluate import evaluate_split, match_model
from polarmask.evaluation.gate import Verdict
from polarmask.inference.model_folder import WEIGHTS_FILE, load_model
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask
from polarmask.network.head import Predictions
from polarmask.system.device import find_device
from polarmask.system.files import sha256_of_file
from polarmask.system.progress_bar import progress_bar
from polarmask.system.tables import aligned

LARGEST_AP_LOSS = 0.003
"""Mask AP, in [0, 1], that an admitted engine may lose."""
"""First images of the val split, for mask AP."""
MAX_CALIBRATION_IMAGES = 16
"""The images after them (if there are none, the same), for the calibration of 8-bit engines."""
_COMPARED_IMAGES = 4
_ROUNDS = 5
_COUNTS_FROM_SCORE = 0.05


@dataclass(frozen=True, eq=False)
class _Sample:
    """The images that all engines run on."""

    description: str
    batches: list[Tensor]
    """Each (1, 3, H, W), the first of the most frequent size."""
    data: CocoData | None
    calibration: list[Tensor]
    """Each (1, 3, H, W), not of `data` where there are enough images; empty without any."""


def measure_engines(
    model: Path,
    *,
    data: Path | None = None,
    device: str | None = "cpu",
    max_images: int = 32,
) -> EngineRanking:
    """Measure and rank all engines on a model.

    Args:
        model: Model folder.
        data: COCO folder with a val split; without it only float32 engines can be admitted.
        device: "cpu" or "cuda"; None takes CUDA where there is one. CPU engines are measured on
            as many threads as torch uses; set one for servers.
        max_images: Images of the val split for mask AP.

    Raises:
        DataError: The split can't be used.
        ModelFormatError: The model can't be read.
    """
    own = find_device(device)
    detector, card = load_model(model, device=own)
    reference = Predictor(Eager(detector), card, own)
    sample = _take_sample(reference, data, max_images)
    engines: dict[str, Engine] = {}
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name, kind in ENGINES.items() if _fits(kind, own)]
        lacks, calibration = _write_programs(detector, Path(folder), own, sample)
        for name in progress_bar(names, desc="loading engines", unit="engine"):
            if lack := lacks.get(ENGINES[name].program):
                refused[name] = lack
                continue
            try:
                engines[name] = make_engine(name, detector, device=own, folder=Path(folder))
            except EngineError as error:
                refused[name] = str(error)
        results = [
            EngineResult(name=name, admitted=False, reason=reason)
            for name, reason in refused.items()
        ]
        results += _compare(engines, reference, own, sample)
    hw = sample.batches[0].shape[2:]
    return EngineRanking(
        weights_sha256=sha256_of_file(model / WEIGHTS_FILE),
        device=own.type,
        cpu=cpu_name(),
        versions=_versions(),
        canvas_hw=(hw[0], hw[1]),
        images=sample.description,
        engines=tuple(sorted(results, key=lambda result: list(ENGINES).index(result.name))),
        calibration=calibration,
    )


def _fits(kind: EngineKind, device: torch.device) -> bool:
    return kind.device == device.type or (kind.exact and not kind.program)


def _write_programs(
    detector: PolarMask, folder: Path, device: torch.device, sample: _Sample
) -> tuple[dict[str, str], Calibration]:
    """Write the programs of exported engines; return why files are missing, and the calibration."""
    if device.type != "cpu":
        return {}, {}
    program = folder / PROGRAM_FILE
    try:
        export_program(detector, program)
    except EngineError as error:
        return {PROGRAM_FILE: str(error), INT8_FILE: str(error)}, {}
    if not sample.calibration:
        return {INT8_FILE: "8-bit integers need images to measure the network's values on"}, {}
    try:
        calibration = calibrate(program, sample.calibration)
        quantize_program(program, calibration, folder / INT8_FILE)
    except EngineError as error:
        return {INT8_FILE: str(error)}, {}
    return {}, calibration


def _take_sample(predictor: Predictor, data: Path | None, max_images: int) -> _Sample:
    if data is None:
        return _Sample("1 drawn image", [predictor.network_input(_drawn(predictor))], None, [])
    loaded = load_coco(data, "val", config=predictor.card.config.input)
    whole = match_model(predictor, loaded)
    part = replace(whole, images=whole.images[:max_images])
    images = [read_image(part.image_path(record)) for record in part.images[:_COMPARED_IMAGES]]
    batches = [predictor.network_input(image) for image in images]
    frequent = Counter(tuple(batch.shape) for batch in batches).most_common(1)[0][0]
    batches.sort(key=lambda batch: tuple(batch.shape) != frequent)
    description = f"first {len(part.images)} of {len(whole.images)} images of val"
    others = whole.images[max_images : max_images + MAX_CALIBRATION_IMAGES] or part.images
    paths = [whole.image_path(record) for record in others[:MAX_CALIBRATION_IMAGES]]
    calibration = [predictor.network_input(read_image(path)) for path in paths]
    return _Sample(description, batches, part, calibration)


def _drawn(predictor: Predictor) -> NDArray[np.uint8]:
    """Draw an image of discs on clouds, 3 by 4, in the size of the network's input."""
    config = predictor.card.config.input
    rows = config.short_side or min(config.max_side, 384)
    columns = rows * 4 // 3
    random = np.random.default_rng(0)
    clouds = random.integers(0, 256, (rows // 16 + 2, columns // 16 + 2, 3), dtype=np.uint8)
    image = cv2.resize(clouds, (columns, rows), interpolation=cv2.INTER_CUBIC)
    for _ in range(20):
        x, y, radius = random.integers(0, (columns, rows, rows // 8 + 2))
        colour = random.integers(0, 256, 3).tolist()
        cv2.circle(image, (int(x), int(y)), int(radius) + 4, colour, -1)
    return np.asarray(image, dtype=np.uint8)


def _compare(
    engines: dict[str, Engine], reference: Predictor, device: torch.device, sample: _Sample
) -> list[EngineResult]:
    """Compare each engine with eager float32, time those that run, and decide about each."""
    results = []
    differences: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        wanted = [reference.engine.run(batch) for batch in sample.batches]
        for name, engine in engines.items():
            try:
                found = [_kept(engine.run(batch)) for batch in sample.batches]
            except Exception as error:  # libraries raise anything for a network they can't run
                reason = f"it fails: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
                results.append(EngineResult(name=name, admitted=False, reason=reason))
            else:
                differences[name] = _difference(wanted, found)
        working = {name: engines[name] for name in differences}
        milliseconds = _time(working, sample.batches[0])
    reference_ap = _mask_ap(reference, sample.data)
    for name, engine in progress_bar(working.items(), desc="evaluating engines", unit="engine"):
        kind, (score, ray) = ENGINES[name], differences[name]
        mask_ap = reference_ap if name == "eager" else math.nan
        if _is_close(kind, score, ray) and not kind.exact:
            mask_ap = _mask_ap(Predictor(engine, reference.card, device), sample.data)
        verdict = admit(kind, (score, ray), mask_ap, reference_ap)
        result = EngineResult(
            name=name,
            admitted=verdict.passed,
            reason=verdict.reason,
            milliseconds=round(milliseconds[name], 2),
            score_difference=float(f"{score:.3g}"),
            ray_difference=float(f"{ray:.3g}"),
            mask_ap=None if math.isnan(mask_ap) else round(mask_ap, 5),
        )
        results.append(result)
    return results


def _is_close(kind: EngineKind, score: float, ray: float) -> bool:
    return score <= kind.score_tolerance and ray <= kind.ray_tolerance


def _kept(predictions: Predictions) -> Predictions:
    """Copy predictions that the engine may overwrite in its next run."""
    boxes = predictions.box_BL4
    return replace(
        predictions,
        class_BLC=predictions.class_BLC.clone(),
        quality_BL=predictions.quality_BL.clone(),
        ray_BLR=predictions.ray_BLR.clone(),
        box_BL4=None if boxes is None else boxes.clone(),
    )


def _difference(wanted: Sequence[Predictions], found: Sequence[Predictions]) -> tuple[float, float]:
    """Return the largest difference of a score, and of a ray as a fraction of its length."""
    scores, rays = [0.0], [0.0]
    for one, other in zip(wanted, found, strict=True):
        score_BLC, other_BLC = _scores(one), _scores(other)
        scores.append(float((score_BLC - other_BLC).abs().max()))
        best_BL = score_BLC.amax(dim=2)
        counts_BL = best_BL >= min(_COUNTS_FROM_SCORE, float(best_BL.max()))
        share_BLR = (other.ray_BLR.float() / one.ray_BLR.float() - 1).abs()
        rays.append(float(share_BLR[counts_BL].max()))
    return _largest(scores), _largest(rays)


def _largest(values: Sequence[float]) -> float:
    """Return the largest value; infinity if one is NaN."""
    return math.inf if any(math.isnan(value) for value in values) else max(values)


def _scores(predictions: Predictions) -> Tensor:
    quality_BL1 = predictions.quality_BL.float().sigmoid()[..., None]
    return predictions.class_BLC.float().sigmoid() * quality_BL1


def _time(engines: dict[str, Engine], batch: Tensor) -> dict[str, float]:
    """Return the best time of each engine in milliseconds; engines take turns."""
    best = dict.fromkeys(engines, math.inf)
    for _ in progress_bar(range(_ROUNDS), desc="timing engines", unit="round"):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.run(batch)
            if batch.is_cuda:
                torch.cuda.synchronize()
            best[name] = min(best[name], 1000 * (time.perf_counter() - started))
    return best


def _mask_ap(predictor: Predictor, data: CocoData | None) -> float:
    if data is None:
        return math.nan
    return evaluate_split(predictor, data)[0].mask_ap


def admit(
    kind: EngineKind, difference: tuple[float, float], mask_ap: float, reference_ap: float
) -> Verdict:
    """Decide whether an engine may run the model.

    Args:
        kind: With the tolerances.
        difference: Of scores, and of rays, from eager float32.
        mask_ap: Of the engine, in [0, 1]; not read if the engine computes in float32.
        reference_ap: Of eager float32; NaN without images.
    """
    score, ray = difference
    if not _is_close(kind, score, ray):
        return Verdict(
            False,
            f"differs from eager float32: scores by {score:.2g} (at most {kind.score_tolerance:g}),"
            f" rays by {ray:.2g} of their length (at most {kind.ray_tolerance:g})",
        )
    if kind.exact:
        return Verdict(True, "equals eager float32 within tolerance")
    if math.isnan(reference_ap):
        return Verdict(False, "its loss of mask AP can't be measured without images with objects")
    loss = reference_ap - mask_ap
    return Verdict(
        loss < LARGEST_AP_LOSS,
        f"costs {100 * loss:.2f} points of mask AP; below {100 * LARGEST_AP_LOSS:g} is allowed",
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "openvino", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ranking_table(ranking: EngineRanking) -> str:
    """Return the ranking as aligned text, one engine per line."""
    rows = [["engine", "ms", "score diff", "ray diff", "mask AP", "admitted"]]
    for engine in ranking.engines:
        numbers = (
            engine.milliseconds,
            engine.score_difference,
            engine.ray_difference,
            engine.mask_ap,
        )
        texts = ["-" if number is None else f"{number:.4g}" for number in numbers]
        admitted = "yes" if engine.admitted else "no"
        rows.append([engine.name, *texts, f"{admitted}: {engine.reason}"])
    return aligned(rows)
