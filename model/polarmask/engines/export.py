"""Export the network as an ONNX program, for engines other than torch.

A program takes any number of images, of any size that is a multiple of the strides. Batch norm is
folded, and the weights are inside. Equal weights give equal bytes with equal versions of torch and
onnx.

Dimension key
    B: images    H, W: rows and columns of the network's input    3: channels
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polarmask.engines.fold import fold_batch_norm
from polarmask.engines.interface import EngineError
from polarmask.network.detector import PolarMask
from polarmask.system.files import atomic_path

if TYPE_CHECKING:
    import onnx

_OPSET = 21  # the first with a GroupNormalization that engines fuse
_LARGEST = 2 * 2**30 - 2**20
"""Bytes that an ONNX file can have."""


def export_program(detector: PolarMask, out: Path) -> None:
    """Write the network as ONNX.

    Raises:
        EngineError: The tools are not installed, or ONNX can't express the network.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch needs it, but fails late without it
    except ImportError as error:
        raise EngineError(f"{error.name} is not installed; the extra `export` brings it") from error
    network = _Flat(detector)
    if sum(value.nbytes for value in network.state_dict().values()) > _LARGEST:
        raise EngineError("the weights are larger than the 2 GB that an ONNX file can hold")
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, 256, 384),),
                dynamo=True,
                opset_version=_OPSET,
                dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                verbose=False,
            )
    except Exception as error:  # exporters raise anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(f"it can't be exported: {first}") from error
    assert program is not None  # noqa: S101  # only the older exporter returns nothing
    plain = program.model_proto
    _drop_metadata(plain)
    with atomic_path(out) as temporary:
        temporary.write_bytes(plain.SerializeToString(deterministic=True))
    onnx.checker.check_model(out)


class _Flat(nn.Module):
    """The folded network, returning a tuple."""

    def __init__(self, detector: PolarMask) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).cpu()
        fold_batch_norm(self.detector)
        self.eval()

    def forward(self, batch_B3HW: Tensor) -> tuple[Tensor, ...]:
        found = self.detector(batch_B3HW)
        flat = (found.class_BLC, found.quality_BL, found.ray_BLR)
        return flat if found.box_BL4 is None else (*flat, found.box_BL4)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _drop_metadata(model: "onnx.ModelProto") -> None:
    """Drop stack traces, which contain the paths of this machine."""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for values in (model.graph.value_info, model.graph.input, model.graph.output):
        for value in values:
            del value.metadata_props[:]
    for weight in model.graph.initializer:
        del weight.metadata_props[:]
        weight.doc_string = ""
