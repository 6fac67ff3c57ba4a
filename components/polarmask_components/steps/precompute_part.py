"""Step: one pod's share of the ray labels."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def precompute_part(
    dataset: dsl.Input[dsl.Dataset],
    label_settings: str,
    part: str,
    code_version: str,
    shards: dsl.Output[dsl.Dataset],
) -> int:
    """Make every so-manieth shard of both splits.

    Args:
        dataset: COCO folder.
        label_settings: JSON of `preflight`: input size, strides, ray count, label rules.
        part: "2/4" is the second of four shares.
        code_version: Of the code that makes the labels.
        shards: Folder of the shards; `precompute_rays` makes a store of all parts'.

    Returns:
        Number of shards.
    """
    from pathlib import Path

    from polarmask.labels.precompute import Crew, Part, precompute_part
    from polarmask_components.run.run_settings import choose_workers, config_for_labels

    data, out = Path(dataset.path), Path(shards.path)
    config, crew = config_for_labels(label_settings), Crew(choose_workers(data))
    number, of = map(int, part.split("/"))
    count = precompute_part(data, out, config, Part(number, of), crew=crew)
    (out / "part.txt").write_text(f"{part}\n")  # object storage keeps no empty folder
    shards.metadata["part"] = part
    return count
