"""Write the reference pages that come from the code: `make reference`.

    config.md                every setting of a run, from the docstrings of its dataclasses
    cli.md                   every command, from the argument parsers
    pipeline-parameters.md   from the signature and docstring of the pipeline
    metrics.md               what the server exposes, from TorchServe's metrics.yaml

A test compares the committed pages with what this module returns.
"""

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polarmask_serving.torchserve
from polarmask import cli as model_cli
from polarmask.config.describe import fields_of, sections
from polarmask.config.settings import RunConfig
from polarmask_components.commands import models as models_cli
from polarmask_pipelines import __main__ as pipelines_cli
from polarmask_pipelines.parameters import pipeline_parameters, write_value
from polarmask_serving import __main__ as serving_cli

REFERENCE = Path(__file__).parent / "reference"
METRICS = Path(polarmask_serving.torchserve.__path__[0]) / "metrics.yaml"
_METRIC = re.compile(
    r"- \{name: (?P<name>\w+), unit: (?P<unit>\w+), dimensions: \[(?P<labels>[^]]*)\]\}"
    r"(?:  # (?P<text>.*))?$"
)
_ANCHOR = re.compile(r"- &(\w+) \"(\w+)\"")


def main() -> None:
    """Write all pages."""
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of each page by its file name in docs/reference."""
    return {
        "config.md": _page("Settings of a run", "the dataclasses in `polarmask.config`", _config()),
        "cli.md": _page("Commands", "the argument parsers", _commands()),
        "pipeline-parameters.md": _page(
            "Parameters of the pipeline",
            "`pipelines/polarmask_pipelines/train_and_deploy.py`",
            _parameters(),
        ),
        "metrics.md": _page(
            "Metrics", "`serving/polarmask_serving/torchserve/metrics.yaml`", _metrics()
        ),
    }


def _page(title: str, source: str, parts: Iterable[str]) -> str:
    head = f"# {title}\n\nGenerated from {source} by `make reference`. Do not edit this page."
    return "\n\n".join([head, *parts]) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines
    )


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


# Settings


def _config() -> Iterator[str]:
    yield (
        "A preset gives every setting a value (`polarmask presets` lists them); "
        "`--set SECTION.FIELD=VALUE` changes one. Defaults are those of the dataclasses."
    )
    parts = sections()
    yield _section("", RunConfig, without=parts)
    for name, section in parts.items():
        yield _section(f"{name}.", section)


def _section(prefix: str, section: type, without: Iterable[str] = ()) -> str:
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## Top level"
    rows = [
        (_code(prefix + each.name), _code(each.type), _code(each.default), each.meaning)
        for each in fields_of(section)
        if each.name not in without
    ]
    about = inspect.cleandoc(section.__doc__ or "").replace("\n", " ")
    table = _table(("setting", "type", "default", "meaning"), rows)
    return f"{title}\n\n{about}\n\n{table}"


# Commands


def _commands() -> Iterator[str]:
    for parser, prog in (
        (model_cli.build_parser(), "polarmask"),
        (serving_cli.build_parser(), "python -m polarmask_serving"),
        (pipelines_cli.build_parser(), "python -m polarmask_pipelines"),
        (models_cli.build_parser(), models_cli.PROG),
    ):
        yield f"## `{prog}`\n\n{_sentence(parser.description)}"
        yield from _subcommands(parser, prog)


def _subcommands(parser: argparse.ArgumentParser, prog: str) -> Iterator[str]:
    for action in parser._actions:  # argparse has no public list of arguments
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                if any(isinstance(each, argparse._SubParsersAction) for each in command._actions):
                    yield from _subcommands(command, f"{prog} {name}")
                else:
                    yield _command(command, f"{prog} {name}", command.description or helps[name])


def _command(parser: argparse.ArgumentParser, title: str, about: str | None) -> str:
    rows = [
        (_code(_written(action)), _required(action), (action.help or "") % vars(action))
        for action in parser._actions
        if action.help != argparse.SUPPRESS and "--help" not in action.option_strings
    ]
    parts = [f"### `{title}`", _sentence(about)]
    if rows:
        parts.append(_table(("argument", "", "meaning"), rows))
    for group in parser._mutually_exclusive_groups:
        flags = " or ".join(_code(_written(action)) for action in group._group_actions)
        parts.append(f"{'Exactly' if group.required else 'At most'} one of {flags}.")
    example = (parser.epilog or "").strip().partition("example: ")[2]
    if example:
        parts.append(f"```bash\n{example}\n```")
    return "\n\n".join(parts)


def _written(action: argparse.Action) -> str:
    """Return an argument as it is typed."""
    value = action.metavar or action.dest.upper()
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    repeated = f"{value} ..." if action.nargs in ("+", "*") else str(value)
    if not action.option_strings:
        return repeated
    flag = action.option_strings[-1]
    return flag if action.nargs == 0 else f"{flag} {repeated}"


def _required(action: argparse.Action) -> str:
    return "required" if action.required else ""


def _sentence(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text[:1].upper() + text[1:].rstrip(".") + "."


# Pipeline parameters


def _parameters() -> Iterator[str]:
    yield (
        "Write `--param NAME=VALUE` for `run`, `compile`, `submit` and `schedule apply`: a bool is "
        "`true` or `false`, a dict is a JSON object."
    )
    yield _table(
        ("parameter", "type", "default", "meaning"),
        [
            (_code(each.name), each.type.__name__, _code(write_value(each.default)), each.text)
            for each in pipeline_parameters().values()
        ],
    )


# Metrics


def _metrics() -> Iterator[str]:
    yield (
        "TorchServe shows these for Prometheus at `/metrics`, port 8082; Envoy's own are at "
        "`/metrics/proxy`."
    )
    source = METRICS.read_text(encoding="utf-8")
    names = dict(_ANCHOR.findall(source))
    rows: list[tuple[str, str, str, str, str]] = []
    kind = ""
    for line in map(str.strip, source.splitlines()):
        if line in ("counter:", "gauge:", "histogram:"):
            kind = line.rstrip(":")
        found = _METRIC.match(line)
        if found:
            labels = (
                names[each[1:]] if each.startswith("*") else each.strip('"')
                for each in found["labels"].split(", ")
            )
            name, unit, text = found["name"], found["unit"], found["text"]
            rows.append((_code(name), kind, unit, ", ".join(labels), text or ""))
    yield _table(("metric", "type", "unit", "labels", "meaning"), rows)


if __name__ == "__main__":
    main()
