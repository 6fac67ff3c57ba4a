"""Command line `polarmask models`: list, show, diff, rollback."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polarmask.errors import DataError, PolarMaskError
from polarmask.system.command_line import run_command
from polarmask.system.redaction import redact
from polarmask_components.cluster.address import CLUSTER
from polarmask_components.commands.model_text import (
    differences,
    differences_text,
    list_plain,
    list_text,
    model_plain,
    model_text,
)
from polarmask_components.deploy.local_places import RUNS, local_places, server_beside
from polarmask_components.errors import ComponentError, RollOutError, UnknownVersionError
from polarmask_components.registry.history import (
    KnownModel,
    known_model,
    known_models,
    previous_champion,
)
from polarmask_components.registry.registry import Registry, open_registry
from polarmask_serving.errors import ServingError

PROG = "polarmask models"
_TARGET = f"{CLUSTER}polarmask/polarmask"
"""Of registries in object storage, as the pipeline's `deploy_target`."""
_VERSION = "version, its first digits, or `champion`"
Run = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None, *, prog: str = PROG) -> int:
    """Run one command: the entry point `models` of `polarmask.programs`.

    Returns:
        The exit code: 0, or 2 for an error, in one line.
    """
    return run_command(
        lambda: _run(arguments, prog),
        prefix=prog,
        errors=(PolarMaskError, ComponentError, ServingError, OSError),
    )


def _run(arguments: Sequence[str] | None, prog: str) -> None:
    options = build_parser(prog).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.run(options)


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="the models of a registry: which there are, and which one serves",
        epilog=f"example: {prog} list",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = _add(commands, "list", _list, "list all models and stopped candidates, newest first")
    _add_json(add)
    add = _add(commands, "show", _show, "show all that is known about a model", "champion")
    add.add_argument("version", help=_VERSION)
    _add_json(add)
    add = _add(commands, "diff", _diff, "show what differs between two models", "3f2a champion")
    add.add_argument("first", help=_VERSION)
    add.add_argument("second", help=_VERSION)
    _add_json(add)
    add = _add(
        commands, "rollback", _rollback, "serve an earlier model again, and make it the champion"
    )
    _add_rollback(add)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Run,
    text: str,
    example: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.epilog = f"example: {parser.prog} {example}".rstrip()
    parser.set_defaults(run=run)
    parser.add_argument(
        "--registry",
        help="folder or s3://bucket/prefix of the model registry (default: "
        f"{local_places(RUNS).registry})",
    )
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "version", nargs="?", help=f"{_VERSION} (default: the champion before the current one)"
    )
    parser.add_argument(
        "--target",
        help="kubernetes://NAMESPACE/DEPLOYMENT, or the folder of this machine's server (default: "
        f"`server` beside a registry's folder; {_TARGET} for one in object storage)",
    )
    parser.add_argument(
        "--name", default="polarmask", help="of the model, in URLs (default: polarmask)"
    )
    parser.add_argument(
        "--image",
        type=Path,
        help="JPEG or PNG that it has to answer first (default: the one that it answered before)",
    )
    parser.add_argument(
        "--trial",
        type=_trial,
        default={},
        metavar="JSON",
        help="on a cluster: try it on live requests first, as deploy_trial of the pipeline",
    )


def _trial(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no JSON object; give one in quotes, such as '{{\"copies\": 0.1}}'"
        )
    return content


def _list(options: argparse.Namespace) -> None:
    registry = _open(options.registry)
    models = known_models(registry)
    if options.json:
        _print_json(list_plain(models))
    else:
        print(list_text(models) if models else "no model yet")
        print(f"registry: {redact(registry.where)}")


def _show(options: argparse.Namespace) -> None:
    registry = _open(options.registry)
    model = known_model(registry, options.version)
    archive = registry.archive_uri(model.record) if model.record else ""
    if options.json:
        _print_json(model_plain(model, archive=archive))
    else:
        print(model_text(model, archive=archive))


def _diff(options: argparse.Namespace) -> None:
    registry = _open(options.registry)
    first, second = (known_model(registry, each) for each in (options.first, options.second))
    if options.json:
        _print_json(differences(first, second))
    else:
        print(differences_text(first, second))


def _rollback(options: argparse.Namespace) -> None:
    from polarmask_components.deploy.deploy import deploy
    from polarmask_components.deploy.trial.settings import read_trial

    registry = _open(options.registry)
    before = registry.champion_version()
    model = known_model(registry, options.version or previous_champion(registry))
    target = options.target or _target_of(registry)
    read_trial(options.trial, target)  # what is wrong with it comes before anything starts
    image = _image_for(model, registry, options.image)
    _check_archive(model, registry)
    _check_reachable(target, options.name)
    print(f"starting {model.version} for {target}; {before or 'nothing'} serves until it answers")
    sys.stdout.flush()
    deployed = deploy(
        lambda: registry.record(model.version),
        target,
        name=options.name,
        registry=registry,
        expected=before,
        image=image,
        trial=options.trial,
    )
    if deployed.trial is not None:
        print(f"trial: {deployed.trial['reason']}")
    found = len(deployed.answer["instances"])
    print(
        f"version {deployed.version} is the champion and answers at {deployed.url}: {found} "
        "instances in the image"
    )


def _open(place: str | None) -> Registry:
    if place:
        return open_registry(place)
    default = local_places(RUNS).registry
    if not default.is_dir():
        raise DataError(
            f"there is no registry at {default}: `polarmask pipeline run` makes one; name another "
            "place with --registry"
        )
    return open_registry(str(default))


def _target_of(registry: Registry) -> str:
    if registry.where.startswith("s3://"):
        return _TARGET
    server = server_beside(Path(registry.where))
    if not server.is_dir():
        raise DataError(f"there is no server at {server}; name its folder with --target")
    return str(server)


def _image_for(model: KnownModel, registry: Registry, image: Path | None) -> bytes:
    kept = image.read_bytes() if image else registry.image(model.version)
    if kept is None:
        raise DataError(
            f"no image was kept for {model.version}, which an earlier release deployed; give a "
            "JPEG or PNG that it has to answer with --image"
        )
    return kept


def _check_archive(model: KnownModel, registry: Registry) -> None:
    if model.record is None:
        raise UnknownVersionError(
            f"{registry.where} has no archive of {model.version}, {model.state}: {model.note}"
        )


def _check_reachable(target: str, name: str) -> None:
    """Find before the roll-out that its last part, asking the model, can't work from here."""
    if not target.startswith(CLUSTER):
        return
    from polarmask_components.cluster.connection import connect
    from polarmask_components.deploy.ask_server import is_reachable
    from polarmask_components.deploy.cluster_deployment import ClusterDeployment

    url = ClusterDeployment.from_uri(connect(), target).url(name)
    if not is_reachable(url):
        raise RollOutError(
            f"the Service of {target} can't be reached from here ({url}); run this command in the "
            "cluster: docs/how-to/manage-models.md has the Job"
        )


def _print_json(content: Any) -> None:  # noqa: ANN401  # anything that JSON holds
    print(json.dumps(content, indent=1))
