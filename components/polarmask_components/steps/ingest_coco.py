"""Step: fetch the data of one commit, and check it."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def ingest_coco(
    repository: str,
    data_commit: str,
    data_hash: str,
    code_version: str,
    dataset: dsl.Output[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    max_problems: float = 0.02,
) -> None:
    """Fetch COCO data through DVC; check every image and annotation.

    Args:
        repository: Folder in a git checkout, or a URL of one.
        data_commit: Commit whose data.dvc names the data.
        data_hash: DVC's hash of the data; what was fetched is verified against it.
        code_version: Hash of the installed code.
        dataset: Folder with `images/` and `annotations/instances_{train,val}.json`.
        page: Statistics and problems of the data.
        max_problems: Largest share of images, and of objects, that may be left out, in [0, 1].
    """
    import logging
    from pathlib import Path

    from polarmask.data.summary import summary_counts
    from polarmask.labels.precompute import load_splits
    from polarmask.report.data import data_page
    from polarmask.system.files import write_text
    from polarmask_components.provenance.data_version import DataVersion, fetch
    from polarmask_components.step_inputs import record_contents

    fetch(repository, DataVersion(data_commit, data_hash), Path(dataset.path))
    loaded = load_splits(Path(dataset.path), ("train", "val"), check_pixels=True)
    provenance = {
        "data_commit": data_commit,
        "data_hash": data_hash,
        "code_version": code_version,
    }
    splits = {data.split: data for data in loaded}
    write_text(Path(page.path), data_page(splits, provenance=provenance))
    for data in loaded:
        logging.getLogger(__name__).info("%s", data.summary.describe())
        data.summary.check(max_problems, setting=f"data_max_problems={max_problems:g}")
    counts = summary_counts(data.summary for data in loaded)
    dataset.metadata.update(provenance | counts)
    record_contents(dataset)
