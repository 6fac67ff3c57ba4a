"""Step: the shards of the ray labels that one pod makes."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def precompute_shards(
    dataset: dsl.Input[dsl.Dataset],
    label_settings: str,
    shard: str,
    code_version: str,
    shards: dsl.Output[dsl.Dataset],
    device: str = "cpu",
) -> int:
    """Make every n-th shard of both splits.

    Args:
        dataset: COCO folder.
        label_settings: JSON from `preflight`: input size, strides, ray count, label rules.
        shard: "2/4" makes every 4th shard, starting with the second.
        code_version: Hash of the installed code.
        shards: Folder of the shards; `precompute_rays` joins those of all pods.
        device: `cpu` or `cuda`; the labels are the same.

    Returns:
        Number of shards.
    """
    from pathlib import Path

    from polarmask.labels.precompute import EveryNth
    from polarmask.labels.precompute import precompute_shards as make_shards
    from polarmask_components.parameters.label_work import choose_workers, config_for_labels
    from polarmask_components.step_inputs import folder_of

    data, out = folder_of(dataset), Path(shards.path)
    config, workers = config_for_labels(label_settings, data), choose_workers(data, device)
    number, of = map(int, shard.split("/"))
    made = make_shards(data, out, config, EveryNth(number, of), workers=workers)
    (out / "shard.txt").write_text(f"{shard}\n")  # object storage keeps no empty folder
    shards.metadata["shard"] = shard
    return made.count
