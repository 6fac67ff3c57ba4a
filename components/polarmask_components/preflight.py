"""Step: fail in seconds instead of after an hour."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def preflight(
    preset: str,
    overrides: str,
    nodes: int,
    processes_per_node: int,
    floor_ap: float,
    registry: str,
    model_name: str,
    webhook: str,
) -> str:
    """Check the parameters, the champion registry, and what the last step needs to serve.

    Args:
        preset: Name of a known run.
        overrides: Settings to change, `section.field=value`, separated by spaces.
        nodes: Machines to train on.
        processes_per_node: Training processes on each; 0 leaves it to the launcher.
        floor_ap: Lowest mask AP that may be served, in [0, 1].
        registry: Folder or s3://bucket/prefix of the champion registry.
        model_name: In the server's URLs.
        webhook: Address that is told how the run ended; empty for none.

    Returns:
        What ray labels depend on, as JSON.
    """
    from polarmask_components.notification import check_webhook
    from polarmask_components.registry import open_registry
    from polarmask_components.run_settings import check_settings, label_settings_text
    from polarmask_serving.launch import check_installed
    from polarmask_serving.names import check_url_name

    config = check_settings(
        preset_name=preset,
        overrides=overrides,
        nodes=nodes,
        processes_per_node=processes_per_node,
        floor_ap=floor_ap,
    )
    check_webhook(webhook)
    check_url_name("deploy_model_name", model_name)
    check_installed()
    opened = open_registry(registry)
    opened.champion_version()
    opened.check_writable()
    return label_settings_text(config)
