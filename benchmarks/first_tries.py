"""Follow the tutorials as a new user does: minutes, and the number of commands.

    .venv/bin/python benchmarks/first_tries.py                          all, as they are written
    .venv/bin/python benchmarks/first_tries.py cells --shortened        a few steps of training each

Each tutorial runs in a fresh clone of this checkout, with its environment and data. Blocks marked
`bash tested` count as its commands; blocks marked `bash tested aside` run, too: they make sample
data that stands in for the reader's own, look closer, or tidy up.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import machine, markdown

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
NAMES = ("cells", "fine-tune", "your-pipeline")
CHECKOUT = "polarmask-k8s"
"""The name of the clone, as in the README."""
SHORTENED = {
    r"^(polarmask train .*)": r"\1 --set epochs=0.1",
    # At this learning rate a model finds nothing: mask AP is 0 for all, and a tie passes the gate.
    r"^(polarmask pipeline run .*)": r"\1 --param eval_floor_ap=0 "
    "--param 'train_set=epochs=0.02 optim.lr=1e-9'",
    r"^polarmask pipeline demo$": "polarmask train --preset tiny --set epochs=0.1 --data data "
    "--out runs/demo",
}
"""What a shortened tutorial runs in place of its commands."""
SERVER = "runs/shared/server"
"""Where a pipeline run leaves it."""
_GIT = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")


@dataclass(frozen=True)
class Line:
    """One line of a block."""

    text: str
    counts: bool
    """Whether it is one of the tutorial's commands."""


@dataclass(frozen=True)
class Took:
    """One line that was run."""

    line: Line
    seconds: float
    output: str


def lines_of(name):
    """Return the lines of a tutorial's tested blocks, in their order."""
    page = (TUTORIALS / f"{name}.md").read_text()
    blocks = re.findall(r"^```bash tested( aside)?\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [Line(text, not aside) for aside, block in blocks for text in block.splitlines()]


def follow(name, checkout, *, replaced=None):
    """Run the lines of a tutorial one after the other, beginning in a checkout.

    Args:
        name: Of the tutorial.
        checkout: Folder with `data` and `docs`, called `CHECKOUT`.
        replaced: Regular expressions of lines, and what is run in place of them.

    Returns:
        A `Took` for each line.

    Raises:
        SystemExit: A line failed.
    """
    folder, port, took = checkout, _free_port(), []
    with ExitStack() as stack:
        for line in lines_of(name):
            command = line.text.replace(":8080", f":{port}")
            for pattern, other in (replaced or {}).items():
                command = re.sub(pattern, other, command)
            started = time.monotonic()
            output = ""
            if command.startswith("cd "):
                folder /= command.removeprefix("cd ")
            elif command.startswith("polarmask serve "):
                output = stack.enter_context(_serving(f"{command} --port {port}", folder))
            else:
                if command.startswith("polarmask pipeline run "):  # it leaves a server
                    stack.callback(_run, f"polarmask pipeline stop {SERVER}", folder)
                output = _run(command, folder)
            took.append(Took(line, time.monotonic() - started, output))
    return took


def _run(command, folder):
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def _serving(command, folder):
    """Start a server, yield what it prints once it answers, and stop it at the end."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as server,
    ):
        try:
            first = server.stdout.readline()  # "" if it does not start
            if not first.startswith("ready"):
                errors.seek(0)
                raise SystemExit(f"{command}: {first}{errors.read()}")
            yield first
        finally:
            server.terminate()


def _environment():
    """Return variables of a shell with the environment activated and a name for git."""
    return {
        **os.environ,
        **dict.fromkeys(_GIT, "reader@example.org"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NO_PROXY": "127.0.0.1",
    }


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--shortened", action="store_true", help="train a few steps only")
    parser.add_argument("--demo", type=Path, help="a run to take as the demo's, which is not made")
    options = parser.parse_args()
    replaced = dict(SHORTENED) if options.shortened else {}
    if options.demo:
        copy = f"mkdir -p runs && cp -r {options.demo.resolve()} runs/demo"
        replaced[r"^polarmask pipeline demo$"] = copy
    rows = []
    for name in options.names:
        with tempfile.TemporaryDirectory(prefix="first-try-") as folder:
            clone = Path(folder) / CHECKOUT
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
            (clone / "data").symlink_to(ROOT / "data")
            took = follow(name, clone, replaced=replaced)
        for each in took:
            print(f"{each.seconds:7.1f} s  {each.line.text}", flush=True)
            print("".join(f"           {line[:150]}\n" for line in each.output.splitlines()[-20:]))
        counted = [each.seconds for each in took if each.line.counts]
        rows.append((name, str(len(counted)), f"{sum(counted) / 60:.1f}"))
    print("\n".join(markdown(("tutorial", "commands", "minutes"), rows)))
    print(f"on {machine()}")


if __name__ == "__main__":
    main()
