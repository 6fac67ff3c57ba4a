"""Whole tasks as Python functions: `polarmask.train` and `polarmask.evaluate`."""

from pathlib import Path
from typing import Any

from polarmask.config.overrides import change
from polarmask.errors import DataError
from polarmask.evaluation import evaluate as evaluation
from polarmask.evaluation.auto_preset import preset_for
from polarmask.inference.predictor import Predictor
from polarmask.model_sources.model import Model, load
from polarmask.model_sources.open_model import open_model, open_weights
from polarmask.report.run_pages import RunPages
from polarmask.system.distributed import process_group
from polarmask.training import train as training


def train(
    data: str | Path,
    out: str | Path,
    preset: str | None = None,
    *,
    init_from: str | Path | None = None,
    labels: str | Path | None = None,
    device: str | None = None,
    loader_workers: int = 0,
    tensorboard: bool = False,
    **settings: Any,  # noqa: ANN401  # each setting has its own type, checked when it is read
) -> Model:
    """Train a model, or resume training it, and return it to be called.

        model = polarmask.train("data", "runs/first", epochs=20)

    `logging.basicConfig(level="INFO")` shows the progress where there is no terminal.

    Args:
        data: Folder with `images/` and `annotations/instances_{train,val}.json`.
        out: Run folder; the training resumes if it holds a checkpoint.
        preset: Name of a preset. None is `auto`, which fits the data; with `init_from` the
            settings of that model.
        init_from: Start from the weights of this run, model folder, checkpoint, archive or URL.
        labels: Label store; None makes one in the run folder.
        device: "cpu" or "cuda"; None takes CUDA where there is one.
        loader_workers: Processes that load images.
        tensorboard: Write curves and overlays to `tensorboard/` in the run folder.
        **settings: Changes of the preset by name (`lr=0.001`), or by `{"optim.lr": 0.001}`.

    Raises:
        PolarMaskError: As `polarmask train`: its kind says what has to be mended.
        TrainingStopped: SIGTERM, SIGHUP or Ctrl-C came; the checkpoint holds the last step.
    """
    initial = open_weights(init_from) if init_from else None
    like = initial.config if initial and preset is None else None
    config = change(like or preset_for(preset, Path(data)), settings)
    provenance = {"init_from": str(init_from)} if init_from else {}
    with process_group(device) as own:
        options = training.TrainOptions(
            data=Path(data),
            out=Path(out),
            labels=None if labels is None else Path(labels),
            device=own,
            loader_workers=loader_workers,
            tensorboard=tensorboard,
            initial=initial,
            provenance=provenance,
            observer=RunPages(Path(out), provenance),
        )
        folder = training.train(config, options)
    return load(folder, device=device)


def evaluate(
    model: Model | str | Path, data: str | Path, split: str = "val"
) -> evaluation.Evaluation:
    """Evaluate a model on a split of a COCO folder: mask AP and what else the report shows.

    Args:
        model: A loaded model, or what `load` opens, but no server.
        data: Folder with `images/` and `annotations/`.
        split: Which annotations.

    Raises:
        DataError: Nothing usable in the split, its categories are not those of the model, or the
            model is a server's.
    """
    if not isinstance(model, Model):
        finder = open_model(model, device=None)
    elif isinstance(model.finder, Predictor):
        finder = model.finder
    else:
        raise DataError("a server can't be evaluated; load the model itself")
    return evaluation.evaluate(finder, Path(data), split)
