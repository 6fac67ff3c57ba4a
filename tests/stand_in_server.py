"""Replaces TorchServe in pods of tests that are about the cluster: up in a tenth of a second.

Started with the same arguments. It speaks for the archive's version, and misbehaves as the model's
card asks in `provenance.behaviour`.
"""

import argparse
import json
import os
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from polarmask_serving.answer.options import TRIAL_HEADER
from polarmask_serving.torchserve import probe

PORTS = ("inference_port", "management_port", "metrics_port")

FOUND = {
    "category_id": 1,
    "category": "cell",
    "score": 0.5,
    "bbox": [1, 2, 3, 4],
    "polygon": [[1, 2], [4, 2], [4, 6]],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--archive")
    parser.add_argument("--scratch")
    options = parser.parse_args()
    scratch = Path(options.scratch)
    with zipfile.ZipFile(options.archive) as archive:
        model = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
        card = json.loads(archive.read("model/model.json"))
    behaviour = card["provenance"].get("behaviour", "")
    if behaviour == "crashes":
        sys.exit("RuntimeError: weights are missing")
    version = model["modelVersion"]
    answer = answer_of(model, behaviour)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status = "UNLOADING" if behaviour == "is-never-ready" else "READY"
            self.reply(200, [{"modelVersion": version, "workers": [{"status": status}]}])

        def do_POST(self):
            size = int(self.headers["Content-Length"])
            self.rfile.read(size)
            if behaviour == "hangs":
                time.sleep(600)
            if behaviour == "dies-of-images":
                os._exit(9)
            status = 500 if behaviour.startswith("fails") else 200
            if behaviour == "fails-copies" and TRIAL_HEADER not in self.headers:
                status = 200
            log_request_line(self.headers, version, size, status, behaviour)
            self.reply(status, answer)

        def reply(self, status, content):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Log nothing."""

    try:  # after a restart the proxy still asks there
        port = probe.Target.read(scratch).ports[PORTS[0]]
    except OSError:
        port = 0
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    ports = dict.fromkeys(PORTS, server.server_port)
    probe.Target(ports=ports, name=model["modelName"], version=version, workers=1).write(scratch)
    server.serve_forever()


def log_request_line(headers, version, size, status, behaviour):
    """Write the line of a request as `observe.log_line` does; that takes seconds to import."""
    left = 100 if behaviour == "sees-other-things" else 1
    request = {
        "request_id": headers.get("x-request-id", ""),
        "status": status,
        "version": version,
        "bytes": size,
        "images": [{"height": 8, "width": 8, "instances": 1}],
        "seconds": {"network": 0.5 if behaviour == "is-slow" else 0.001},
    }
    if TRIAL_HEADER in headers:
        request["found"] = [[[1, 0.5, left, 2, 3, 4]]]
    sys.stdout.write(json.dumps({"request": request}) + "\n")
    sys.stdout.flush()


def answer_of(model, behaviour):
    version = "0" * 12 if behaviour == "has-another-version" else model["modelVersion"]
    answer = {"model": {"name": model["modelName"], "version": version}, "instances": [FOUND]}
    if behaviour == "answers-nonsense":
        return b"nonsense"
    if behaviour == "scores-out-of-range":
        return answer | {"instances": [FOUND | {"score": 7}]}
    return answer


if __name__ == "__main__":
    main()
