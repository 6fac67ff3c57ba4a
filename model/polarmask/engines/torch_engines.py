"""Engines that torch runs itself.

Dimension key
    B: images    H, W: rows and columns of the network's input    3: channels
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polarmask.engines.fold import fold_batch_norm
from polarmask.engines.interface import EngineError
from polarmask.engines.machine import has_bf16
from polarmask.network.detector import PolarMask
from polarmask.network.head import Predictions
from polarmask.system.device import half_precision

_MAX_GRAPHS = 8
"""Recorded input shapes; each holds the memory of one forward pass."""


class Eager:
    """The network as it was trained; also used on the live network during training."""

    name = "eager"

    def __init__(self, detector: nn.Module) -> None:
        self._detector = detector

    def run(self, batch_B3HW: Tensor) -> Predictions:
        """Run the network."""
        predictions: Predictions = self._detector(batch_B3HW)
        return predictions


class Folded(Eager):
    """The network with batch norm folded into the convolutions."""

    name = "folded"

    def __init__(self, detector: PolarMask) -> None:
        super().__init__(_folded(detector))


class Half:
    """Folded, and convolutions in bf16, or in fp16 on a GPU without bf16."""

    def __init__(self, detector: PolarMask, device: torch.device) -> None:
        if device.type == "cpu" and not has_bf16():
            raise EngineError("this CPU has no bf16 instructions")
        self.name = "bf16" if device.type == "cpu" else "cuda_half"
        on_cpu = device.type == "cpu"
        self._dtype = half_precision("bf16" if on_cpu else "auto", device)
        # Norms, too: conversions between dtypes would take longer than the norms do.
        self._detector = _folded(detector).to(self._dtype)

    def run(self, batch_B3HW: Tensor) -> Predictions:
        """Run the network; logits come out in half precision, lengths in float32."""
        predictions: Predictions = self._detector(batch_B3HW.to(self._dtype))
        return predictions


@dataclass(frozen=True, eq=False)
class _Recording:
    graph: torch.cuda.CUDAGraph
    batch_B3HW: Tensor
    predictions: Predictions


class CudaGraph:
    """Half precision, recorded once per input shape and then replayed without Python."""

    name = "cuda_graph"

    def __init__(self, detector: PolarMask, device: torch.device) -> None:
        self._half = Half(detector, device)
        self._recordings: OrderedDict[tuple[int, ...], _Recording] = OrderedDict()

    def run(self, batch_B3HW: Tensor) -> Predictions:
        """Replay; the next call with this shape overwrites the returned tensors."""
        shape = tuple(batch_B3HW.shape)
        if shape not in self._recordings:
            if len(self._recordings) == _MAX_GRAPHS:
                self._recordings.popitem(last=False)
            self._recordings[shape] = self._record(batch_B3HW)
        self._recordings.move_to_end(shape)
        recording = self._recordings[shape]
        recording.batch_B3HW.copy_(batch_B3HW)
        recording.graph.replay()
        return recording.predictions

    def _record(self, batch_B3HW: Tensor) -> _Recording:
        own_B3HW = batch_B3HW.clone()
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # libraries choose their kernels here, not while recording
            for _ in range(3):
                self._half.run(own_B3HW)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            predictions = self._half.run(own_B3HW)
        return _Recording(graph, own_B3HW, predictions)


def _folded(detector: PolarMask) -> PolarMask:
    own = copy.deepcopy(detector).eval()
    fold_batch_norm(own)
    return own.to(memory_format=torch.channels_last)
