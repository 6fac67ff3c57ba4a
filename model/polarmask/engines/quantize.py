"""Quantize the exported network: convolutions in 8-bit integers.

Rounding depends on the ranges of the values in the network, which are measured on images. These
ranges are the calibration of one set of weights. With it, as JSON, the quantized program can be
written again, byte for byte.

Dimension key
    B: images    H, W: rows and columns of the network's input    3: channels
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from polarmask.engines.interface import EngineError
from polarmask.system.files import atomic_path

Calibration = dict[str, Any]
"""The ranges of all tensors, in the form of ONNX Runtime."""


def calibrate(program: Path, batches: Sequence[Tensor]) -> Calibration:
    """Measure the ranges of a network's values.

    Args:
        program: Written by `export_program`.
        batches: Each (1, 3, H, W), images as the network gets them.

    Raises:
        EngineError: The tools are not installed, or they fail.
    """
    with TemporaryDirectory() as folder:
        cache = Path(folder) / "calibration.json"
        _quantize(program, Path(folder) / "quantized.onnx", cache, batches)
        calibration: Calibration = json.loads(cache.read_text(encoding="utf-8"))
        return calibration


def quantize_program(program: Path, calibration: Calibration, out: Path) -> None:
    """Write the program with 8-bit convolutions.

    Raises:
        EngineError: The tools are not installed, or the calibration is not of this program.
    """
    with TemporaryDirectory() as folder, atomic_path(out) as temporary:
        cache = Path(folder) / "calibration.json"
        cache.write_text(json.dumps(calibration), encoding="utf-8")
        _quantize(program, temporary, cache)


def _quantize(program: Path, out: Path, cache: Path, batches: Sequence[Tensor] = ()) -> None:
    """Quantize with the ranges in `cache`, which are measured first if there are batches."""
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    except ImportError as error:
        raise EngineError(
            f"{error.name} is not installed; the extras `engines` and `export` bring it"
        ) from error
    input_name = onnx.load(program).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        """Yields the batches."""

        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch_B3HW = next(self._left, None)
            return None if batch_B3HW is None else {input_name: batch_B3HW.numpy()}

    try:
        with _quiet():
            quantize_static(
                program,
                out,
                Reader() if batches else None,
                per_channel=True,
                reduce_range=True,  # to 7 bits: AVX2 sums two products in 16 bits, which overflow
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["Conv"],
                calibration_cache_path=cache,
            )
    except Exception as error:  # its errors share no base of their own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(f"it can't be quantized: {first}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tools, which log to the root logger and configure it."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.removeHandler(handler)
