"""Step: this run finished; the next one may stop if nothing changed. Never cached."""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def remember_run(
    data_hash: str,
    code_version: str,
    preset: str,
    overrides: str,
    floor_ap: float,
    model_name: str,
    target: str,
    registry: str,
) -> None:
    """Keep what `check_changed` compares with; after the gate, whatever it said.

    Args:
        data_hash: DVC's hash of the data.
        code_version: Of the code that ran.
        preset: Name of a known run.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        floor_ap: Lowest mask AP that may be served, in [0, 1].
        model_name: In the server's URLs.
        target: Where the model is served.
        registry: Folder or s3://bucket/prefix of the champion registry.
    """
    from polarmask_components.run.run_fingerprint import RunInputs, remember
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
    remember(open_objects(registry), inputs)
