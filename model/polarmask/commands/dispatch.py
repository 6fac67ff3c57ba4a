"""What each command of the command line does; imports what it needs, so that `--help` is quick."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from polarmask.config.presets import preset
from polarmask.config.settings import RunConfig, override

if TYPE_CHECKING:
    from polarmask.commands.open_model import Finder


def _config(options: argparse.Namespace) -> RunConfig:
    return override(preset(options.preset), options.set)


def run_inspect(options: argparse.Namespace) -> None:
    """Look at data before training."""
    from polarmask.data.coco import describe_problems, load_coco
    from polarmask.evaluation.inspect_data import describe, inspect_data

    config = _config(options)
    data = load_coco(options.data, options.split)
    inspection = inspect_data(data, config, max_images=options.max_images)
    print(describe(inspection))
    print(f"problems: {describe_problems(data.problems)}")
    if options.out:
        from polarmask.inference.drawing import encode_jpeg
        from polarmask.report.inspection import inspection_page, worst_pictures, worst_sheet
        from polarmask.system.files import atomic_path, write_text

        page = inspection_page(inspection, data, config=config)
        write_text(options.out / "inspection.html", page)
        with atomic_path(options.out / "worst.jpg") as temporary:
            temporary.write_bytes(encode_jpeg(worst_sheet(worst_pictures(inspection, data))))
        print(f"page: {options.out / 'inspection.html'}")


def run_precompute(options: argparse.Namespace) -> None:
    """Check the data and make its ray labels."""
    from polarmask.labels.precompute import Crew, Part, find_splits, precompute, precompute_part
    from polarmask.system.device import find_device

    data, out, config = options.data, options.out, _config(options)
    splits = find_splits(data)
    crew = Crew(options.workers, find_device("cuda").type if options.device == "cuda" else None)
    if options.shard is not None:
        part = Part(*options.shard)
        count = precompute_part(data, out, config, part, splits=splits, crew=crew)
        print(f"{count} shards of part {part.number}/{part.of} are in {out}; when all parts are")
        print("made, run the same command without --shard to finish the store (--made FOLDER ...)")
        return
    store = precompute(data, out, config, splits=splits, crew=crew, made=options.made)
    if "val" not in splits:
        print(f"val: {options.data} has no instances_val.json, labels are for training only")
    for split in splits:
        summary = store.summary(split)
        print(
            f"{split}: {summary.images} images, {summary.instances} instances, "
            f"{summary.positives} positives, {summary.without_positive} instances without one, "
            f"{summary.ignored} ignored, reachable mask IoU {summary.mean_iou:.3f}"
        )


def run_train(options: argparse.Namespace) -> None:
    """Train a model or go on training it."""
    import torch

    from polarmask.system.distributed import is_first, process_group, world_size
    from polarmask.training.train import TrainOptions, train

    if options.threads:
        torch.set_num_threads(options.threads)
    config = _config(options)
    if options.backbone_weights:
        config = replace(config, backbone_weights=options.backbone_weights)
    provenance = dict(fact.partition("=")[::2] for fact in options.provenance)
    with process_group(options.device) as device:
        if options.images_per_process:
            batch_size = options.images_per_process * world_size()
            config = replace(config, optim=replace(config.optim, batch_size=batch_size))
        folder = train(
            config,
            TrainOptions(
                data=options.data,
                out=options.out,
                labels=options.labels,
                device=device,
                loader_workers=options.loader_workers,
                passes=options.passes,
                compiled=options.compile,
                deterministic=options.deterministic,
                tensorboard=options.tensorboard,
                provenance=provenance,
            ),
        )
        if is_first():
            print(f"model: {folder}")


def run_presets(_options: argparse.Namespace) -> None:
    """List the known runs."""
    from polarmask.config.presets import presets_table

    print(presets_table())


def run_import_original(options: argparse.Namespace) -> None:
    """Make a model folder from a checkpoint of the paper's code."""
    from polarmask.commands.import_original import import_original

    card = import_original(
        options.checkpoint,
        options.out,
        data=options.data,
        preset_name=options.preset,
        ray_order=None if options.ray_order == "auto" else options.ray_order,
    )
    print(f"model: {options.out} ({card.config.name}, {card.provenance['ray_order']} ray order)")


def run_evaluate(options: argparse.Namespace) -> None:
    """Measure COCO mask AP."""
    from polarmask.data.coco import load_coco
    from polarmask.evaluation.evaluate import evaluate_predictions, predict_together
    from polarmask.inference.predictor import Predictor
    from polarmask.system.distributed import is_first, process_group
    from polarmask.system.files import write_text

    with process_group(options.device) as device:
        data = load_coco(options.data, options.split, check_pixels=True)
        predictor = Predictor.load(options.model, device=device, threads=options.threads)
        predictions = predict_together(predictor, data)
        if not is_first():
            return
    evaluation = evaluate_predictions(data, predictions)
    print(
        f"mask AP {evaluation.mask_ap:.4f}  AP50 {evaluation.mask_ap50:.4f}  "
        f"AP75 {evaluation.mask_ap75:.4f}  ({evaluation.num_images} images, "
        f"{evaluation.num_instances} instances)"
    )
    if options.out:
        from polarmask.report.evaluation import evaluation_page

        write_text(options.out / "evaluation.json", evaluation.to_json())
        provenance = predictor.card.provenance
        page = evaluation_page(evaluation, data, predictions, provenance=provenance)
        write_text(options.out / "report.html", page)
        print(f"report: {options.out / 'report.html'}")


def run_predict(options: argparse.Namespace) -> None:
    """Write what a model finds in images as JSON."""
    from polarmask.commands.predict import find_images, predict_images

    images = find_images(options.images)
    finder = _open_finder(options)
    counts = predict_images(finder, images, options.out, min_score=options.score)
    for path, count in counts.items():
        print(f"{path}: {count} instances")
    print(f"predictions: {options.out}")


def run_visualize(options: argparse.Namespace) -> None:
    """Draw what a model finds in images."""
    from polarmask.commands.predict import find_images, visualize_images

    images = find_images(options.images)
    finder = _open_finder(options)
    counts = visualize_images(
        finder, images, options.out, min_score=options.score, rays=options.rays
    )
    for path, count in counts.items():
        print(f"{path}: {count} instances")
    print(f"overlays: {options.out}, all together: {options.out / 'contact_sheet.jpg'}")


def _open_finder(options: argparse.Namespace) -> "Finder":
    from polarmask.commands.open_model import open_model, open_server
    from polarmask.errors import DataError

    if options.url:
        if options.device or options.threads:
            raise DataError("--device and --threads are for --model; a server has its own")
        token = options.token_file.read_text().strip() if options.token_file else None
        return open_server(options.url, token=token)
    if options.token_file:
        raise DataError("--token-file is for --url")
    return open_model(options.model, device=options.device, threads=options.threads)
