"""What an engine is, which ones exist, and how far each may differ from eager float32.

Dimension key
    B: images    H, W: rows and columns of the network's input    3: channels
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from polarmask.errors import PolarMaskError
from polarmask.network.head import Predictions


class Engine(Protocol):
    """Runs the network. One call at a time."""

    name: str

    def run(self, batch_B3HW: Tensor) -> Predictions:
        """Return raw predictions of normalised images on whole locations of every level."""


class EngineError(PolarMaskError):
    """An engine can't run this network on this machine."""


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """Properties and tolerances of an engine."""

    device: str
    """Where it runs: cpu or cuda."""
    exact: bool
    """Computes in float32; other engines need measured mask AP to be admitted."""
    program: str = ""
    """Exported program within the model folder; empty for engines that run the network in torch."""
    score_tolerance: float
    """Largest difference of a score from eager float32, scores being in [0, 1]."""
    ray_tolerance: float
    """Largest difference of a ray as a fraction of its length, where the score is above 0.05."""


PROGRAM_FILE = "engines/network.onnx"
"""Written by `export`."""
INT8_FILE = "engines/network_int8.onnx"
"""Written by `quantize`."""


def _exact(*, program: str = "") -> EngineKind:
    # Sums in another order: float32 has 7 digits, and 50 layers lose some of them.
    return EngineKind(
        device="cpu", exact=True, program=program, score_tolerance=1e-3, ray_tolerance=1e-3
    )


def _half(device: str, *, program: str = "") -> EngineKind:
    # bf16 has 2 to 3 digits; the measured loss of AP decides.
    return EngineKind(
        device=device, exact=False, program=program, score_tolerance=0.1, ray_tolerance=0.2
    )


def _int8() -> EngineKind:
    # 256 values per layer; again, the measured loss of AP decides.
    return EngineKind(
        device="cpu", exact=False, program=INT8_FILE, score_tolerance=0.2, ray_tolerance=0.5
    )


ENGINES: dict[str, EngineKind] = {
    "eager": _exact(),
    "folded": _exact(),
    "bf16": _half("cpu"),
    "openvino": _exact(program=PROGRAM_FILE),
    "openvino_bf16": _half("cpu", program=PROGRAM_FILE),
    "openvino_int8": _int8(),
    "onnxruntime": _exact(program=PROGRAM_FILE),
    "cuda_half": _half("cuda"),
    "cuda_graph": _half("cuda"),
}

SAFE_ENGINE = "folded"
"""The fallback: runs every network on every device."""
