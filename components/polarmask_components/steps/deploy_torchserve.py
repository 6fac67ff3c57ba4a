"""Step: put the candidate into service and make it the champion. Never cached."""

from typing import Any

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def deploy_torchserve(
    model: dsl.Input[dsl.Model],
    sample: dsl.Input[dsl.Artifact],
    metrics: dsl.Input[dsl.Metrics],
    engines: dsl.Input[dsl.Artifact],
    registry: str,
    target: str,
    model_name: str,
    champion_version: str,
    answer: dsl.Output[dsl.Artifact],
    trial: dict[str, Any] = {},  # noqa: B006  # Kubeflow reads it
) -> str:
    """Serve a model with TorchServe, here or in a cluster, try it with an image, then promote it.

    On any failure the version before stays in service, and the champion stays champion.

    Args:
        model: Model folder.
        sample: PNG that is sent to the server.
        metrics: Metrics of the model on this data, for the registry.
        engines: Engine ranking of `measure_engines`; the archive gets the fastest engine.
        registry: Folder or s3://bucket/prefix of the model registry; s3 for a cluster.
        target: kubernetes://NAMESPACE/NAME of a Deployment, or a folder for the pod of this
            machine, which is started if none runs there.
        model_name: Model name in URLs.
        champion_version: Champion that the candidate was compared with; empty for none.
        answer: The new version's answer to the image, as JSON; metadata: version, and the
            figures of the trial if there was one.
        trial: How to try the model on live requests of a cluster first: fields of
            `trial.settings.TrialSettings`; empty for none.

    Returns:
        Where the model answers.
    """
    import json
    from functools import partial
    from pathlib import Path

    from polarmask.engines.ranking import read_ranking
    from polarmask.system.files import write_text
    from polarmask_components.deploy.deploy import deploy
    from polarmask_components.deploy.register_model import register_model
    from polarmask_components.registry.registry import open_registry

    models = open_registry(registry)
    register = partial(
        register_model,
        Path(model.path),
        name=model_name,
        metrics=metrics.metadata,
        engines=read_ranking(Path(engines.path)),
        registry=models,
    )
    deployed = deploy(
        register,
        target,
        name=model_name,
        registry=models,
        expected=champion_version or None,
        image=Path(sample.path).read_bytes(),
        trial=trial,
    )
    write_text(Path(answer.path), json.dumps(deployed.answer, indent=1) + "\n")
    answer.metadata["version"] = deployed.version
    if deployed.trial is not None:
        answer.metadata["trial"] = deployed.trial
    return deployed.url
