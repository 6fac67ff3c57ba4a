"""Step: this run finished; the next one may stop if nothing changed. Never cached."""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def remember_run(data_hash: str, code_version: str, settings_id: str, registry: str) -> None:
    """Store what `check_changed` compares with; runs after the gate, whatever it decided.

    Args:
        data_hash: DVC's hash of the data.
        code_version: Hash of the installed code.
        settings_id: Hash of the parameters that decide the result; from `preflight`.
        registry: Folder or s3://bucket/prefix of the model registry.
    """
    from polarmask_components.provenance.last_run import RunInputs, remember
    from polarmask_components.storage.objects import open_objects

    remember(open_objects(registry), RunInputs(data_hash, code_version, settings_id))
