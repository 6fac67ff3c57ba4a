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
) -> None:
    """Fetch COCO data through DVC; check every image and annotation.

    Args:
        repository: Folder in a git checkout, or a URL of one.
        data_commit: Commit whose data.dvc names the data.
        data_hash: DVC's hash of the data; what was fetched is verified against it.
        code_version: Hash of the installed code.
        dataset: Folder with `images/` and `annotations/instances_{train,val}.json`.
        page: Statistics and problems of the data.
    """
    from pathlib import Path

    from polarmask.data.coco import load_coco
    from polarmask.report import data_page
    from polarmask.system.files import write_text
    from polarmask_components.provenance.data_version import DataVersion, fetch

    fetch(repository, DataVersion(data_commit, data_hash), Path(dataset.path))
    splits = {
        split: load_coco(Path(dataset.path), split, check_pixels=True) for split in ("train", "val")
    }
    provenance = {
        "data_commit": data_commit,
        "data_hash": data_hash,
        "code_version": code_version,
    }
    write_text(Path(page.path), data_page(splits, provenance=provenance))
    problems = {f"{split}_problems": len(data.problems) for split, data in splits.items()}
    images = {f"{split}_images": len(data.images) for split, data in splits.items()}
    dataset.metadata.update(provenance | images | problems)
