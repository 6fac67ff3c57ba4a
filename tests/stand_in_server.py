"""Stands in for TorchServe in pods of tests that are about the cluster: up in a tenth of a second.

Started with the same arguments. It speaks for the archive's version, and misbehaves as the model's
card says in `provenance.behaviour`.
"""

import argparse
import json
import os
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from polarmask_serving import probe

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
            self.rfile.read(int(self.headers["Content-Length"]))
            if behaviour == "hangs":
                time.sleep(600)
            if behaviour == "dies-of-images":
                os._exit(9)
            self.reply(500 if behaviour == "fails" else 200, answer)

        def reply(self, status, content):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Say nothing of each request."""

    try:  # after a restart the proxy goes on asking there
        port = probe.Target.read(scratch).ports[PORTS[0]]
    except OSError:
        port = 0
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    ports = dict.fromkeys(PORTS, server.server_port)
    probe.Target(ports=ports, name=model["modelName"], version=version, workers=1).write(scratch)
    server.serve_forever()


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
