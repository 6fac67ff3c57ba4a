"""Step: has anything changed since the last pipeline run? Never cached: its answer changes."""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def check_changed(
    data_hash: str,
    code_version: str,
    settings_id: str,
    registry: str,
    only_if_changed: bool,
    note: dsl.Output[dsl.Markdown],
) -> bool:
    """Decide whether the run continues: compare data, code and settings with the last finished run.

    Args:
        data_hash: DVC's hash of the data.
        code_version: Hash of the installed code.
        settings_id: Hash of the parameters that decide the result; from `preflight`.
        registry: Folder or s3://bucket/prefix of the model registry.
        only_if_changed: If false, every run continues.
        note: The reason.

    Returns:
        Whether the run continues.
    """
    import logging
    from pathlib import Path

    from polarmask.system.files import write_text
    from polarmask_components.provenance.last_run import RunInputs, decide
    from polarmask_components.storage.objects import open_objects

    inputs = RunInputs(data_hash, code_version, settings_id)
    decision = decide(open_objects(registry), inputs, only_if_changed=only_if_changed)
    write_text(Path(note.path), decision.reason + "\n")
    logging.info(decision.reason)
    return decision.continues
