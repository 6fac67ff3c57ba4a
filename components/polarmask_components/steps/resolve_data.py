"""Step: resolve a revision, which may move, to a commit and hashes. Never cached."""

from typing import NamedTuple

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def resolve_data(repository: str, revision: str) -> NamedTuple(  # type: ignore[valid-type]  # the form KFP asks for
    "Resolved", data_commit=str, data_hash=str, code_version=str
):
    """Return the data version of a revision, and the version of the installed code.

    Args:
        repository: Folder in a git checkout with data.dvc at its top, or a URL of one.
        revision: Commit, tag or branch.

    Returns:
        data_commit: The commit that last changed data.dvc or DVC's configuration.
        data_hash: DVC's hash of the data.
        code_version: Hash of the installed packages; an input of each cached step.
    """
    from collections import namedtuple

    from polarmask_components.provenance.code_version import code_version
    from polarmask_components.provenance.data_version import resolve

    data = resolve(repository, revision)
    Resolved = namedtuple("Resolved", ("data_commit", "data_hash", "code_version"))
    return Resolved(data.commit, data.hash, code_version())
