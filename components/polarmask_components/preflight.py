"""Step: fail in seconds instead of after an hour."""

from kfp import dsl

from polarmask_components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def preflight(
    preset: str,
    overrides: str,
    nodes: int,
    processes_per_node: int,
    floor_ap: float,
    registry: str,
    webhook: str,
) -> str:
    """Check the parameters and that the champion registry can be read.

    Args:
        preset: Name of a known run.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        nodes: Machines to train on.
        processes_per_node: Training processes on each; 0 leaves it to the launcher.
        floor_ap: Lowest mask AP that may be served, in [0, 1].
        registry: Folder or s3://bucket/prefix of the champion registry.
        webhook: Address that is told how the run ended; empty for none.

    Returns:
        What ray labels depend on, as JSON.
    """
    from polarmask_components.notification import check_webhook
    from polarmask_components.registry import open_registry
    from polarmask_components.run_settings import check_settings, label_settings_text

    config = check_settings(
        preset_name=preset,
        overrides=overrides,
        processes=nodes * processes_per_node,
        floor_ap=floor_ap,
    )
    check_webhook(webhook)
    open_registry(registry).champion()
    return label_settings_text(config)
