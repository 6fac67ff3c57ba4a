"""PolarMask: instance segmentation by a centre and rays, from COCO data to masks.

This is the public API, sorted by name. Names are imported on first use (PEP 562), so that
`import polarmask` takes milliseconds and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarmask.api import evaluate, train
    from polarmask.config.presets import PRESETS, preset
    from polarmask.config.settings import RunConfig
    from polarmask.data.coco import CocoData, load_coco
    from polarmask.errors import PolarMaskError
    from polarmask.evaluation.evaluate import Evaluation
    from polarmask.inference.instances import Instances
    from polarmask.inference.predictor import Predictor
    from polarmask.labels.precompute import precompute
    from polarmask.model_sources.model import Model, load
    from polarmask.model_sources.open_model import open_model

__all__ = [
    "PRESETS",
    "CocoData",
    "Evaluation",
    "Instances",
    "Model",
    "PolarMaskError",
    "Predictor",
    "RunConfig",
    "evaluate",
    "load",
    "load_coco",
    "open_model",
    "precompute",
    "preset",
    "train",
]

_MODULE_OF = {
    "PRESETS": "config.presets",
    "CocoData": "data.coco",
    "Evaluation": "evaluation.evaluate",
    "Instances": "inference.instances",
    "Model": "model_sources.model",
    "PolarMaskError": "errors",
    "Predictor": "inference.predictor",
    "RunConfig": "config.settings",
    "evaluate": "api",
    "load": "model_sources.model",
    "load_coco": "data.coco",
    "open_model": "model_sources.open_model",
    "precompute": "labels.precompute",
    "preset": "config.presets",
    "train": "api",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
