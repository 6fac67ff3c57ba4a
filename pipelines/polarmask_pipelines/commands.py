"""Commands that speak with Kubeflow: submit, schedule apply, schedule list, schedule delete."""

import argparse
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from polarmask_pipelines.parameters import pipeline_parameters, read_parameters

if TYPE_CHECKING:
    from polarmask_pipelines.kfp_client import Kubeflow, Version
    from polarmask_pipelines.package import Package

_EXPERIMENT = "polarmask"
_NOTHING_CHANGED = "nothing was changed (--dry-run)"

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, what: str, example: str = ""
) -> argparse.ArgumentParser:
    """Add a command with a copyable example below its help."""
    command = commands.add_parser(name, help=what, description=what)
    command.epilog = f"example: {command.prog} {example}".strip()
    return command


def add_param(command: argparse.ArgumentParser) -> None:
    """Let a command take parameters of the pipeline."""
    command.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"parameter of the pipeline; may be repeated: {', '.join(pipeline_parameters())}",
    )


def add_kubeflow_commands(commands: Commands) -> None:
    """Add `submit` and `schedule`."""
    command = add_command(
        commands,
        "submit",
        "run the pipeline on Kubeflow",
        "--host http://127.0.0.1:8080 --param train_preset=coco-r50-1x --wait",
    )
    _add_place(command)
    add_param(command)
    command.add_argument("--name", default="", help="of the run (default: pipeline and time)")
    _add_service_account(command)
    command.add_argument(
        "--wait", action="store_true", help="until the run ended; exit code 1 if it failed"
    )
    _add_dry_run(command)
    command.set_defaults(command=_submit)

    schedule = commands.add_parser("schedule", help="run the pipeline on Kubeflow again and again")
    actions = schedule.add_subparsers(required=True, metavar="ACTION")
    command = add_command(
        actions,
        "apply",
        "make a schedule as said; what is so already stays as it is",
        "nightly --host http://127.0.0.1:8080 --cron '0 2 * * *' --param data_revision=main",
    )
    command.add_argument("name", help="of the schedule")
    _add_place(command)
    command.add_argument(
        "--cron",
        required=True,
        help="minute, hour, day of month, month, day of week, in the cluster's time zone",
    )
    add_param(command)
    _add_service_account(command)
    command.add_argument("--paused", action="store_true", help="keep it, but start no runs")
    _add_dry_run(command)
    command.set_defaults(command=_schedule_apply)

    command = add_command(actions, "list", "show the schedules", "--host http://127.0.0.1:8080")
    _add_place(command)
    command.set_defaults(command=_schedule_list)

    command = add_command(
        actions,
        "delete",
        "delete a schedule; runs that it started go on",
        "nightly --host http://127.0.0.1:8080",
    )
    command.add_argument("name", help="of the schedule")
    _add_place(command)
    _add_dry_run(command)
    command.set_defaults(command=_schedule_delete)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--host",
        default=os.environ.get("KFP_HOST", ""),
        help="address of Kubeflow Pipelines (default: $KFP_HOST); a token is read from $KFP_TOKEN",
    )
    command.add_argument(
        "--namespace",
        default=os.environ.get("KFP_NAMESPACE", ""),
        help="where Kubeflow serves several users (default: $KFP_NAMESPACE)",
    )
    command.add_argument(
        "--experiment", default=_EXPERIMENT, help=f"made if missing (default: {_EXPERIMENT})"
    )


def _add_service_account(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--service-account", default="", help="that steps run as (default: Kubeflow's choice)"
    )


def _add_dry_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="say what would be done")


def _connect(options: argparse.Namespace) -> "Kubeflow":
    from polarmask_pipelines.kfp_client import Kubeflow

    token = os.environ.get("KFP_TOKEN", "")
    return Kubeflow(options.host, namespace=options.namespace, token=token)


def _submit(options: argparse.Namespace) -> int:
    from polarmask_pipelines.package import compile_package

    parameters = read_parameters(options.param)
    kubeflow = _connect(options)
    package = compile_package({})
    version = kubeflow.find_version(package)
    experiment_id = kubeflow.find_experiment(options.experiment)
    name = options.name or f"{package.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    _tell_version(package, version)
    _tell_experiment(options.experiment, experiment_id)
    _tell_parameters(parameters)
    if options.dry_run:
        print(f"run         {name}\n{_NOTHING_CHANGED}")
        return 0
    run_id = kubeflow.create_run(
        name,
        experiment_id=experiment_id or kubeflow.create_experiment(options.experiment),
        version=version or kubeflow.upload(package),
        parameters=parameters,
        service_account=options.service_account,
    )
    print(f"run         {name}: {kubeflow.address_of_run(run_id)}")
    return _follow(kubeflow, run_id) if options.wait else 0


def _follow(kubeflow: "Kubeflow", run_id: str) -> int:
    try:
        ended = kubeflow.follow(run_id, _tell_with_time)
    except KeyboardInterrupt:
        print("\nthe run goes on; end it in the UI")
        return 130
    if ended.failed:
        print(f"failed      {', '.join(ended.failed)}; the UI shows their logs")
    if ended.error:
        print(f"error       {ended.error}")
    return 0 if ended.succeeded else 1


def _tell_with_time(state: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S}    {state}", flush=True)


def _schedule_apply(options: argparse.Namespace) -> int:
    from polarmask_pipelines.package import compile_package
    from polarmask_pipelines.schedule import Schedule, make_plan

    wanted = Schedule(
        name=options.name,
        cron=options.cron,
        parameters={"run_only_if_changed": True, **read_parameters(options.param)},
        service_account=options.service_account,
        enabled=not options.paused,
    )
    kubeflow = _connect(options)
    package = compile_package({})
    version = kubeflow.find_version(package)
    experiment_id = kubeflow.find_experiment(options.experiment)
    existing = kubeflow.recurring_runs(experiment_id) if experiment_id else []
    plan = make_plan(wanted, existing, version=version)
    _tell_version(package, version)
    _tell_experiment(options.experiment, experiment_id)
    _tell_parameters(wanted.parameters)
    state = "" if wanted.enabled else ", paused"
    print(f"schedule    {plan.action} {wanted.name}: {wanted.cron}, one run at a time{state}")
    if options.dry_run:
        print(_NOTHING_CHANGED)
        return 0
    plan.carry_out(
        kubeflow,
        experiment_id=experiment_id or kubeflow.create_experiment(options.experiment),
        version=version or kubeflow.upload(package),
    )
    return 0


def _schedule_list(options: argparse.Namespace) -> int:
    from polarmask_pipelines.schedule import is_ours

    kubeflow = _connect(options)
    experiment_id = kubeflow.find_experiment(options.experiment)
    found = kubeflow.recurring_runs(experiment_id) if experiment_id else []
    ours = [each for each in found if is_ours(each)]
    for each in sorted(ours, key=lambda run: run.name):
        state = "on" if each.enabled else "paused"
        cron = each.cron.partition(" ")[2]
        print(f"{each.name:<20} {state:<7} {cron:<16} {_in_words(each.parameters)}")
    others = len(found) - len(ours)
    if not ours:
        print(f"no schedules in experiment {options.experiment}")
    if others:
        print(f"and {others} made by others")
    return 0


def _schedule_delete(options: argparse.Namespace) -> int:
    from polarmask_pipelines.errors import KubeflowError
    from polarmask_pipelines.schedule import is_ours

    kubeflow = _connect(options)
    experiment_id = kubeflow.find_experiment(options.experiment)
    found = kubeflow.recurring_runs(experiment_id) if experiment_id else []
    named = [each for each in found if each.name == options.name]
    ours = [each for each in named if is_ours(each)]
    if named and not ours:
        raise KubeflowError(
            f"{options.name} was not made by `schedule apply`; delete it where it was made"
        )
    print(f"schedule    delete {options.name}" if ours else f"no schedule {options.name}")
    if options.dry_run:
        print(_NOTHING_CHANGED)
        return 0
    for each in ours:
        kubeflow.delete_recurring_run(each.id)
    return 0


def _tell_version(package: "Package", version: "Version | None") -> None:
    how = "upload" if version is None else "there already"
    print(f"pipeline    {package.name}, version {package.version}: {how}")


def _tell_experiment(name: str, experiment_id: str | None) -> None:
    print(f"experiment  {name}: {'make' if experiment_id is None else 'there already'}")


def _tell_parameters(parameters: Mapping[str, Any]) -> None:
    print(f"parameters  {_in_words(parameters) or 'the defaults'}")


def _in_words(parameters: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in sorted(parameters.items())
    )
