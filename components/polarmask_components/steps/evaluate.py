"""Step: evaluate the candidate. Succeeds with any mask AP."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def evaluate(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    code_version: str,
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    result: dsl.Output[dsl.Artifact],
    overlay: dsl.Output[dsl.Artifact],
    sample: dsl.Output[dsl.Artifact],
) -> float:
    """Measure COCO mask AP on the val split, with all GPUs of this step or several processes.

    Args:
        model: Model folder.
        dataset: COCO folder.
        code_version: Hash of the installed code.
        metrics: Mask AP and related metrics, in [0, 1].
        page: Curves, tables, best and worst images.
        result: The evaluation (JSON): curves, numbers of each category and image.
        overlay: PNG of a few images with the instances found.
        sample: PNG of a val image, for requests to servers.

    Returns:
        Mask AP in [0, 1].
    """
    from functools import partial
    from pathlib import Path

    from polarmask.data.coco import load_coco
    from polarmask.evaluation.whole_machine import evaluate_on_machine
    from polarmask.inference.predictor import Predictor
    from polarmask.report.evaluation import evaluation_page
    from polarmask.system.files import write_text
    from polarmask_components.step_inputs import folder_of
    from polarmask_components.step_outputs import (
        evaluation_metrics,
        log_metrics,
        overlay_sheet,
        sample_image,
        write_png,
    )

    open_model = partial(Predictor.load, Path(model.path))
    predictor = open_model(device=None)
    images = predictor.card.config.input
    data = load_coco(folder_of(dataset), "val", check_pixels=True, config=images)
    judged, predictions = evaluate_on_machine(predictor, open_model, data)
    provenance = predictor.card.provenance | {"code_version": code_version}
    html = evaluation_page(judged, data, predictions, provenance=provenance)
    write_text(Path(page.path), html)
    write_text(Path(result.path), judged.to_json())
    sheet = overlay_sheet(data, predictions, min_score=judged.operating_score)
    write_png(Path(overlay.path), sheet)
    write_png(Path(sample.path), sample_image(data))
    log_metrics(metrics, evaluation_metrics(judged), data=[judged.data])
    return judged.mask_ap
