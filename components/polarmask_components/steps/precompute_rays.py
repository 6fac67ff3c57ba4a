"""Step: the store of ray labels; cached for all runs with equal label settings."""

from typing import List  # noqa: UP035 Kubeflow knows this form only

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def precompute_rays(
    dataset: dsl.Input[dsl.Dataset],
    shards: dsl.Input[List[dsl.Dataset]],  # noqa: UP006 as above
    label_settings: str,
    code_version: str,
    labels: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Join the shards of all pods into one label store; make those that are missing.

    Args:
        dataset: COCO folder.
        shards: Folders of `precompute_shards`.
        label_settings: JSON from `preflight`: input size, strides, ray count, label rules.
        code_version: Hash of the installed code.
        labels: Label store.
        metrics: Per split: images, instances, positives, and the mean mask IoU in [0, 1] that
            perfectly predicted rays reach.
        page: The same, with the worst-fitting instances drawn.
    """
    from pathlib import Path

    from polarmask.data.coco import load_coco
    from polarmask.labels.precompute import precompute
    from polarmask.report.labels import labels_page
    from polarmask.system.files import write_text
    from polarmask_components.parameters.label_work import choose_workers, config_for_labels
    from polarmask_components.step_inputs import folder_of, record_contents
    from polarmask_components.step_outputs import label_metrics, log_metrics

    data = folder_of(dataset)
    config = config_for_labels(label_settings, data)
    made = [Path(each.path) for each in shards]  # lost ones are made again
    workers = choose_workers(data)
    store = precompute(data, Path(labels.path), config, workers=workers, made=made)
    splits = {split: load_coco(data, split) for split in ("train", "val")}
    provenance = {"data_hash": dataset.metadata["data_hash"], "code_version": code_version}
    write_text(Path(page.path), labels_page(store, splits, config=config, provenance=provenance))
    log_metrics(
        metrics,
        label_metrics({split: store.summary(split) for split in splits}),
        data=[store.data(split) for split in splits],
    )
    labels.metadata.update(provenance)
    record_contents(labels)
