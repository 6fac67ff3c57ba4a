"""Engines that run the exported program: OpenVINO and ONNX Runtime.

Dimension key
    B: images    H, W: rows and columns of the network's input    3: channels
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polarmask.engines.interface import EngineError
from polarmask.engines.machine import has_bf16
from polarmask.network.head import Predictions

_Program = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


class Exported:
    """An engine that runs an exported program."""

    def __init__(self, name: str, program: _Program, strides: tuple[int, ...]) -> None:
        self.name = name
        self._program = program
        self._strides = strides
        self._lock = threading.Lock()

    def run(self, batch_B3HW: Tensor) -> Predictions:
        """Run the program."""
        rows, columns = batch_B3HW.shape[2:]
        with self._lock:
            outputs = self._program(np.ascontiguousarray(batch_B3HW.numpy()))
        class_BLC, quality_BL, ray_BLR, *box_BL4 = map(torch.from_numpy, outputs)
        return Predictions(
            class_BLC=class_BLC,
            quality_BL=quality_BL,
            ray_BLR=ray_BLR,
            box_BL4=box_BL4[0] if box_BL4 else None,
            level_hws=tuple((rows // stride, columns // stride) for stride in self._strides),
        )


def openvino(name: str, program: Path, strides: tuple[int, ...], *, threads: int) -> Exported:
    """Load a program into OpenVINO.

    Args:
        name: Of the engine: openvino; openvino_bf16, which rounds to that; openvino_int8, whose
            program is quantized.
        program: File of the program.
        strides: Of the network's levels.
        threads: CPU threads.

    Raises:
        EngineError: It is not installed, the CPU lacks bf16, or the program can't be loaded.
    """
    bf16 = name == "openvino_bf16"
    if bf16 and not has_bf16():
        raise EngineError("this CPU has no bf16 instructions")
    try:
        import openvino as ov
    except ImportError as error:
        raise EngineError("openvino is not installed; the extra `engines` brings it") from error
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # several workers share the CPUs of a pod
    }

    def load() -> Any:  # noqa: ANN401  # the library has no types
        core = ov.Core()
        compiled = core.compile_model(core.read_model(program), "CPU", settings)
        return compiled.create_infer_request()

    try:
        # OpenVINO gives the thread that loads it a signal stack too small for Python's handlers:
        # if that were the main thread, the next SIGTERM would be a segmentation fault.
        with ThreadPoolExecutor(1) as thread:
            request = thread.submit(load).result()
    except (RuntimeError, OSError) as error:
        raise EngineError(f"OpenVINO can't load {program}: {_first_line(error)}") from error

    def run(batch_B3HW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(request.infer({0: batch_B3HW}).values())

    return Exported(name, run, strides)


def onnx_runtime(program: Path, strides: tuple[int, ...], *, threads: int) -> Exported:
    """Load the program into ONNX Runtime.

    Raises:
        EngineError: It is not installed, or the program can't be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("onnxruntime is not installed; the extra `engines` brings it") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(program), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors share no base of their own
        raise EngineError(f"ONNX Runtime can't load {program}: {_first_line(error)}") from error
    name = session.get_inputs()[0].name

    def run(batch_B3HW: NDArray[np.float32]) -> Any:  # noqa: ANN401  # the library has no types
        return session.run(None, {name: batch_B3HW})

    return Exported("onnxruntime", run, strides)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
