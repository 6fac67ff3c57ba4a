"""Step: has anything changed since the last run? Never cached: that run may be a minute old."""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def check_changed(
    data_hash: str,
    code_version: str,
    preset: str,
    overrides: str,
    floor_ap: float,
    model_name: str,
    target: str,
    registry: str,
    only_if_changed: bool,
    note: dsl.Output[dsl.Markdown],
) -> bool:
    """Tell whether the run goes on, by data, code and settings of the last one that finished.

    Args:
        data_hash: DVC's hash of the data.
        code_version: Of the code that runs.
        preset: Name of a known run.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        floor_ap: Lowest mask AP that may be served, in [0, 1].
        model_name: In the server's URLs.
        target: Where the model is served.
        registry: Folder or s3://bucket/prefix of the champion registry.
        only_if_changed: False lets every run go on.
        note: The reason.

    Returns:
        Whether the run goes on.
    """
    import logging
    from pathlib import Path

    from polarmask.system.files import write_text
    from polarmask_components.run.run_fingerprint import RunInputs, decide
    from polarmask_components.storage.objects import open_objects

    inputs = RunInputs(
        data_hash=data_hash,
        code_version=code_version,
        preset=preset,
        overrides=overrides,
        floor_ap=floor_ap,
        model_name=model_name,
        target=target,
    )
    decision = decide(open_objects(registry), inputs, only_if_changed=only_if_changed)
    write_text(Path(note.path), decision.reason + "\n")
    logging.info(decision.reason)
    return decision.goes_on
