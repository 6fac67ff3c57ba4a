"""Does the model of this pod answer? Startup and readiness probe of a serving pod.

    python -m polarmask_serving.probe --scratch /scratch

TorchServe's own health answers say yes while workers load, crash in a loop or are absent. A worker
counts as ready once a picture went through its model. Asked beside the queue of predictions: a
pod that has much to do stays ready. Imports little, because it runs every few seconds.
"""

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

FILE = "probe.json"
_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """What has to answer."""

    management: str
    """URL of the management interface, on loopback."""
    name: str
    version: str

    @classmethod
    def read(cls, scratch: Path) -> Self:
        """Read what `write` left in the scratch folder."""
        return cls(**json.loads((scratch / FILE).read_text(encoding="utf-8")))

    def write(self, scratch: Path) -> None:
        """Leave it for probes."""
        from polarmask.files import write_text

        write_text(scratch / FILE, json.dumps(asdict(self)) + "\n")

    def problem(self) -> str:
        """Say why it does not answer; nothing if it does."""
        url = f"{self.management}/models/{self.name}/{self.version}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=_SECONDS) as answer:
                (model,) = json.load(answer)
            states = [worker["status"] for worker in model["workers"]]
        except urllib.error.HTTPError as error:
            return f"{self.name} {self.version} is not served: HTTP {error.code}"
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            return f"TorchServe does not answer: {error}"
        if "READY" not in states:
            return f"no worker of {self.name} {self.version} is ready: {', '.join(states) or '-'}"
        return ""


def main(arguments: list[str] | None = None) -> int:
    """Exit with 0 if the model answers, else with 1 and the reason."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.probe")
    parser.add_argument("--scratch", type=Path, required=True, help="as given to the server")
    scratch = parser.parse_args(arguments).scratch
    try:
        problem = Target.read(scratch).problem()
    except (OSError, ValueError, TypeError):
        problem = f"no server has started in {scratch} yet"
    if problem:
        print(problem, file=sys.stderr)
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
