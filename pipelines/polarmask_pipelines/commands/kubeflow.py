"""Commands for Kubeflow: submit, schedule apply, schedule list, schedule delete."""

import argparse
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from polarmask.system.redaction import redact
from polarmask_pipelines.commands.command import (
    CANCELED_RUN,
    DRY_RUN,
    PARAM,
    STOPPED_BY_GATE,
    argument,
    command,
    emphasized,
    switch,
)
from polarmask_pipelines.errors import KubeflowError
from polarmask_pipelines.failed_step import failed_pod, failed_step, log_command
from polarmask_pipelines.kfp_client import CANCELED, SUCCEEDED, Kubeflow
from polarmask_pipelines.package import Package, compile_package
from polarmask_pipelines.parameters import (
    check_parameters,
    check_pipeline_root,
    read_parameters,
    write_value,
)
from polarmask_pipelines.schedule import Schedule, is_ours, make_plan
from polarmask_pipelines.summary import stopped_by_gate

_NOTHING_CHANGED = "nothing was changed (--dry-run)"
_NOT_DELETED = (
    "note: a run of {which} lasts, and this server, older than Kubeflow Pipelines 2.16, would end "
    "the run with its schedule. The schedule is switched off and starts no more runs; "
    "`{command}` deletes it after its run has ended"
)
_STANDALONE_NAMESPACE = "kubeflow"
"""Of the steps, where Kubeflow serves one user."""
_SERVER = (
    argument(
        "--host",
        "address of Kubeflow Pipelines (default: $KFP_HOST); a token is read from $KFP_TOKEN",
    ),
    argument("--namespace", "yours, if Kubeflow serves several users (default: $KFP_NAMESPACE)"),
    argument(
        "--experiment", "created if it does not exist (default: polarmask)", default="polarmask"
    ),
)
_SCHEDULE = argument("name", "of the schedule")
_ACCOUNT = argument("--service-account", "account of the steps (default: Kubeflow's choice)")
_ROOT = argument(
    "--pipeline-root",
    "where Kubeflow keeps artifacts: minio://, s3:// or gs://bucket/prefix (default: its choice)",
)


@command(
    "--host http://127.0.0.1:8080 --param train_preset=coco-r50-1x --wait",
    *_SERVER,
    PARAM,
    argument("--name", "of the pipeline run (default: pipeline and time)"),
    _ACCOUNT,
    _ROOT,
    switch(
        "--wait",
        "wait for the end; exit code 1 if the run failed, 3 if the gate stopped it, 4 if somebody "
        "cancelled it",
    ),
    DRY_RUN,
)
def submit(options: argparse.Namespace) -> int:
    """Run the pipeline on Kubeflow."""
    parameters = read_parameters(options.param)
    check_parameters(parameters)
    check_pipeline_root(options.pipeline_root)
    package = compile_package({})
    kubeflow = _connect(options)
    name = options.name or f"{package.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    _print_plan(kubeflow, options.experiment, package, parameters)
    print(f"run         {name}")
    if options.dry_run:
        print(_NOTHING_CHANGED)
        return 0
    run = kubeflow.client.run_pipeline(  # prints the address of the run
        **kubeflow.create_missing(package),
        job_name=name,
        params=parameters,
        service_account=options.service_account or None,
        pipeline_root=options.pipeline_root or None,
    )
    if not options.wait:
        return 0
    namespace = _namespace(options) or _STANDALONE_NAMESPACE
    return _follow(kubeflow, run.run_id, package, namespace)


def _follow(kubeflow: Kubeflow, run_id: str, package: Package, namespace: str) -> int:
    states = set()
    try:
        for run in kubeflow.follow(run_id):
            states.add(run.state)
            state = (run.state or "PENDING").lower()
            print(f"{datetime.now().astimezone():%H:%M:%S}    {state}", flush=True)
    except KeyboardInterrupt:
        print("\nthe run continues; end it in the UI")
        return 130
    tasks = (run.run_details and run.run_details.task_details) or []
    if run.state not in SUCCEEDED:
        if CANCELED & states.union(each.state for each in run.state_history or ()):
            print(
                f"{emphasized('CANCELLED')}   somebody ended the run; none of its steps is to blame"
            )
            return CANCELED_RUN
        _print_failure(run, failed_step(package, tasks), namespace)
        return 1
    # Entries of retries and groups have the name of their task, too, as in "train(0)".
    ran = {each.display_name.partition("(")[0] for each in tasks if each.state == "SUCCEEDED"}
    if stopped_by_gate(ran):
        print(
            f"{emphasized('STOPPED')}     by the gate: no model was deployed; its page in the UI "
            "has the reason"
        )
        return STOPPED_BY_GATE
    return 0


def _print_failure(run: Any, step: str, namespace: str) -> None:  # noqa: ANN401  # the client has no types
    """Print which step failed, why, and where the rest is."""
    pod = failed_pod(step, run_id=run.run_id, namespace=namespace) if step else None
    reason = f": {pod.reason}" if pod and pod.reason else ""
    if step:
        print(f"failed      {step}{reason}")
    for line in pod.lines if pod else ():
        print(f"  | {redact(line)}")
    if run.error:
        print(f"error       {run.error.message}")
    print(f"log         {log_command(pod, run_id=run.run_id, namespace=namespace)}")


@command(
    "nightly --host http://127.0.0.1:8080 --cron '0 2 * * *' --param data_revision=main",
    _SCHEDULE,
    *_SERVER,
    argument("--cron", "five fields, in the cluster's time zone, as '0 2 * * *'", required=True),
    PARAM,
    _ACCOUNT,
    _ROOT,
    switch("--paused", "keep it, but start no runs"),
    DRY_RUN,
)
def apply(options: argparse.Namespace) -> int:
    """Create a schedule or change it; applied again, it changes nothing."""
    wanted = Schedule(
        name=options.name,
        cron=options.cron,
        parameters={"run_only_if_changed": True, **read_parameters(options.param)},
        service_account=options.service_account,
        pipeline_root=options.pipeline_root,
        enabled=not options.paused,
    )
    check_parameters(wanted.parameters)
    check_pipeline_root(wanted.pipeline_root)
    package = compile_package({})
    kubeflow = _connect(options)
    version_id = _print_plan(kubeflow, options.experiment, package, wanted.parameters)
    plan = make_plan(wanted, kubeflow.recurring_runs(), version_id=version_id)
    state = "" if wanted.enabled else ", paused"
    print(f"schedule    {plan.action} {wanted.name}: {wanted.cron}, one run at a time{state}")
    if options.dry_run:
        print(_NOTHING_CHANGED)
    elif plan.carry_out(kubeflow, package):
        print(_NOT_DELETED.format(which="the earlier schedule", command="schedule apply"))
    return 0


@command("--host http://127.0.0.1:8080", *_SERVER)
def list_(options: argparse.Namespace) -> int:
    """List the schedules."""
    ours, others = _recurring_runs(_connect(options))
    for each in sorted(ours, key=lambda run: str(run.display_name)):
        state = "on" if each.mode == "ENABLE" else "paused"
        cron = each.trigger.cron_schedule.cron.partition(" ")[2]
        parameters = _shown(each.runtime_config.parameters)
        print(f"{each.display_name:<20} {state:<7} {cron:<16} {parameters}")
    if not ours:
        print(f"no schedules in experiment {options.experiment}")
    if others:
        print(f"and {len(others)} made by others")
    return 0


@command("nightly --host http://127.0.0.1:8080", _SCHEDULE, *_SERVER, DRY_RUN)
def delete(options: argparse.Namespace) -> int:
    """Delete a schedule; runs that it started continue."""
    kubeflow = _connect(options)
    ours, others = (
        [each for each in runs if each.display_name == options.name]
        for runs in _recurring_runs(kubeflow)
    )
    if others and not ours:
        raise KubeflowError(
            f"{options.name} was not made by `schedule apply`; delete it where it was made"
        )
    print(f"schedule    delete {options.name}" if ours else f"no schedule {options.name}")
    if options.dry_run:
        print(_NOTHING_CHANGED)
        return 0
    if not all([kubeflow.delete_recurring_run(each) for each in ours]):
        print(_NOT_DELETED.format(which=options.name, command="schedule delete"))
    return 0


def _connect(options: argparse.Namespace) -> Kubeflow:
    return Kubeflow(
        options.host or os.environ.get("KFP_HOST", ""),
        experiment=options.experiment,
        namespace=_namespace(options),
        token=os.environ.get("KFP_TOKEN", ""),
    )


def _namespace(options: argparse.Namespace) -> str:
    return options.namespace or os.environ.get("KFP_NAMESPACE", "")


def _recurring_runs(kubeflow: Kubeflow) -> tuple[list[Any], list[Any]]:
    """Return the recurring runs of the experiment: ours, and those of others."""
    found = kubeflow.recurring_runs()
    return [each for each in found if is_ours(each)], [each for each in found if not is_ours(each)]


def _print_plan(
    kubeflow: Kubeflow, experiment: str, package: Package, parameters: Mapping[str, Any]
) -> str | None:
    """Print what exists on the server; return the id of the pipeline version, if it exists."""
    version_id = kubeflow.find_version(package)
    version = "upload" if version_id is None else "exists"
    create = "create" if kubeflow.experiment_id is None else "exists"
    print(f"pipeline    {package.name}, version {package.version}: {version}")
    print(f"experiment  {experiment}: {create}")
    print(f"parameters  {_shown(parameters) or 'the defaults'}")
    return version_id


def _shown(parameters: Mapping[str, Any]) -> str:
    secret = parameters.get("notify_webhook", "")
    return redact(
        " ".join(f"{name}={write_value(each)}" for name, each in sorted(parameters.items())), secret
    )
