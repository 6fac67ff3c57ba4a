"""Make engines, and choose the one for a model folder."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from polarmask.engines.exported_engines import onnx_runtime, openvino
from polarmask.engines.interface import ENGINES, SAFE_ENGINE, Engine, EngineError
from polarmask.engines.ranking import RANKING_FILE, read_ranking
from polarmask.engines.torch_engines import CudaGraph, Eager, Folded, Half
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.network.detector import PolarMask

_log = logging.getLogger(__name__)


def make_engine(
    name: str, detector: PolarMask, *, device: torch.device, folder: Path, threads: int = 1
) -> Engine:
    """Make an engine by name.

    Args:
        name: One of `ENGINES`.
        detector: The network on `device`, in eval mode; not changed.
        device: Where to compute.
        folder: Model folder, or another one with the programs of exported engines.
        threads: CPU threads of an exported engine; torch engines use the threads of the process.

    Raises:
        EngineError: It can't run here.
    """
    if name in ENGINES and ENGINES[name].device != device.type and name not in _ANYWHERE:
        raise EngineError(f"it runs on {ENGINES[name].device}, not on {device.type}")
    strides = detector.config.strides
    program = folder / ENGINES[name].program if name in ENGINES else folder
    if name in ENGINES and ENGINES[name].program and not program.is_file():
        raise EngineError(f"there is no exported program {program}")
    match name:
        case "eager":
            return Eager(detector)
        case "folded":
            return Folded(detector)
        case "bf16" | "cuda_half":
            return Half(detector, device)
        case "openvino" | "openvino_bf16" | "openvino_int8":
            return openvino(name, program, strides, threads=threads)
        case "onnxruntime":
            return onnx_runtime(program, strides, threads=threads)
        case "cuda_graph":
            return CudaGraph(detector, device)
    raise ConfigError(f"no engine {name!r}; there are: {', '.join(ENGINES)}")


_ANYWHERE = ("eager", "folded")


def load_engine(
    folder: Path,
    detector: PolarMask,
    *,
    device: torch.device,
    name: str | None = None,
    threads: int | None = None,
) -> Engine:
    """Return the engine to run a model with.

    Args:
        folder: Model folder; its engine ranking decides, if there is one.
        detector: The network on `device`.
        device: Where to compute.
        name: Wanted engine; None takes the fastest of the ranking that works here.
        threads: CPU threads; None is one, for engines other than torch's.

    Raises:
        ConfigError: No engine of this name. An engine that can't run here is replaced, with a
            warning: a slow model is better than none.
    """
    wanted = (name,) if name is not None else _ranking(folder)
    for candidate in wanted:
        try:
            engine = make_engine(
                candidate, detector, device=device, folder=folder, threads=threads or 1
            )
            _try(engine, detector, device)
        except EngineError as error:
            _log.warning("engine %s is not used: %s", candidate, error)
        else:
            return engine
    return make_engine(SAFE_ENGINE, detector, device=device, folder=folder)


def _ranking(folder: Path) -> Sequence[str]:
    if not (folder / RANKING_FILE).is_file():
        return (SAFE_ENGINE,)
    try:
        ranking = read_ranking(folder / RANKING_FILE)
    except ModelFormatError as error:
        _log.warning("the engine ranking is not used: %s", error)
        return (SAFE_ENGINE,)
    return [name for name in ranking.fastest_first if name in ENGINES]


def _try(engine: Engine, detector: PolarMask, device: torch.device) -> None:
    """Run a small image, so that an engine that fails is replaced before the first request."""
    side = max(2 * detector.config.strides[-1], 128)
    try:
        with torch.inference_mode():
            engine.run(torch.zeros(1, 3, side, side, device=device))
    except Exception as error:  # each engine has errors of its own
        raise EngineError(f"it fails: {type(error).__name__}: {error}") from error
