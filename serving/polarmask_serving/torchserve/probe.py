"""Does the model of this pod answer? Startup and readiness probe of a serving pod.

    python -m polarmask_serving.torchserve.probe --scratch /scratch

TorchServe's own health is positive while workers load, crash in a loop or are absent. A worker
counts as ready once an image went through its model. This is asked beside the queue of predictions,
so a busy pod stays ready. Imports little, because it runs every few seconds.
"""

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

FILE = "probe.json"
_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """What has to answer."""

    ports: dict[str, int]
    """TorchServe's, on loopback; the names are those of its configuration."""
    name: str
    version: str
    workers: int

    @classmethod
    def read(cls, scratch: Path) -> Self:
        """Read what `write` left in the scratch folder."""
        return cls(**json.loads((scratch / FILE).read_text(encoding="utf-8")))

    def write(self, scratch: Path) -> None:
        """Leave it for probes."""
        from polarmask.system.files import write_text

        write_text(scratch / FILE, json.dumps(asdict(self)) + "\n")

    def is_alive(self) -> bool:
        """Return whether it works, or may still come to work without a restart.

        TorchServe's own health fails for good once a worker could not be started again within
        `maxRetryTimeoutInSec` of model-config.yaml: TorchServe does not try any more then.
        """
        try:
            _get(self.ports["inference_port"], "/ping")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return True

    def problem(self) -> str:
        """Return why it does not answer; nothing if it does."""
        try:
            path = f"/models/{self.name}/{self.version}"
            model = _get(self.ports["management_port"], path)[0]
            states = [worker["status"] for worker in model["workers"]]
        except urllib.error.HTTPError as error:
            return f"{self.name} {self.version} is not served: HTTP {error.code}"
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            return f"TorchServe does not answer: {error}"
        if "READY" not in states:
            return f"no worker of {self.name} {self.version} is ready: {', '.join(states) or '-'}"
        return ""


def _get(port: int, path: str) -> Any:  # noqa: ANN401 whatever the JSON holds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=_SECONDS) as answer:
        return json.load(answer)


def main(arguments: list[str] | None = None) -> int:
    """Exit with 0 if the model answers, else with 1 and the reason."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.torchserve.probe")
    parser.add_argument("--scratch", type=Path, required=True, help="as given to the server")
    parser.add_argument(
        "--alive", action="store_true", help="ask only whether a restart would help"
    )
    options = parser.parse_args(arguments)
    scratch = options.scratch
    try:
        target = Target.read(scratch)
        if options.alive:
            problem = "" if target.is_alive() else "TorchServe does not answer or lost a worker"
        else:
            problem = target.problem()
    except (OSError, ValueError, TypeError):
        problem = f"no server has started in {scratch} yet"
    if problem:
        print(problem, file=sys.stderr)
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
