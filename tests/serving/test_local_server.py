import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from polarmask_serving.errors import ServerError
from polarmask_serving.torchserve.launch import choose_ports
from polarmask_serving.torchserve.roll_out import roll_out
from polarmask_serving.torchserve.server import LocalServer

SAYS_NOTHING = """
def initialize(self, context):
    self.model = {"name": "polarmask", "version": context.manifest["model"]["modelVersion"]}

def handle(self, rows, context):
    return [{"model": self.model, "instances": []}] * len(rows)
"""


def processes_of(scratch):
    """Java and Python processes whose command line names the server's scratch folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if scratch in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def scratch_of(folder):
    return json.loads((folder / "server.json").read_text())["scratch"]


def test_a_server_is_found_again_survives_a_kill_and_stops_without_leftovers(
    archive_of_handler, png, tmp_path, monkeypatch
):
    monkeypatch.setenv("TS_CONFIG_FILE", "/nonexistent")  # must not win over our configuration
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not be asked for loopback
    archive = archive_of_handler(SAYS_NOTHING, version="1")
    folder = tmp_path / "server"
    server = LocalServer.attach_or_start(folder)
    try:
        first = archive_of_handler("def initialize(self, context): raise OSError", version="0")
        assert not roll_out(server, first, image=png).promoted
        assert server.client.versions() == ()
        assert roll_out(server, archive, image=png).promoted
        found = LocalServer.attach_or_start(folder)
        assert (found.pid, found.champion) == (server.pid, "1")
        assert found.predict(png)["model"]["version"] == "1"
        with pytest.raises(ServerError, match="attach"):
            LocalServer.start(folder)
        with pytest.raises(ServerError, match="serves polarmask, not other"):
            LocalServer.attach_or_start(folder, name="other")

        killed, scratch = server.pid, scratch_of(folder)
        os.kill(killed, signal.SIGKILL)
        server = LocalServer.attach_or_start(folder)
        assert server.pid != killed
        assert server.predict(png)["model"]["version"] == "1"
        assert not processes_of(scratch)
    finally:
        server.stop()
    assert not server.is_running()
    assert not processes_of(scratch_of(folder))
    assert not Path(scratch_of(folder)).exists()
    assert server.champion == "1"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "config.properties",
        "server.json",
        "server.log",
        "store",
    ]
    server.stop()  # stopping twice is stopping


def test_a_champion_that_does_not_load_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "server.json").write_text(
        json.dumps(
            {
                "format_version": 1,
                "name": "polarmask",
                "batch_size": 1,
                "ports": choose_ports(),
                "pid": None,
                "scratch": str(tmp_path / "gone"),
                "champion": "7",
            }
        )
    )
    with pytest.raises(ServerError, match="version 7 did not come up"):
        LocalServer.attach_or_start(tmp_path)
    assert not processes_of(scratch_of(tmp_path))


def test_a_port_in_use_is_named(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match="Failed to bind"):
            LocalServer.start(tmp_path, port=port)


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 99}', '{"format_version": 1}'])
def test_a_damaged_record_is_refused_by_name(tmp_path, content):
    (tmp_path / "server.json").write_text(content)
    with pytest.raises(ServerError, match=r"server\.json"):
        LocalServer.attach_or_start(tmp_path)


def test_the_command_serves_until_interrupted(random_model, png, tmp_path):
    port = choose_ports()["inference_port"]
    command = [sys.executable, "-m", "polarmask_serving", "serve", "--model", str(random_model)]
    scratch = tmp_path / ("long" * 25)  # a path of a Unix socket has at most 107 bytes
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Shells let background jobs ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        ready, line = process.stdout.readline(), process.stdout.readline()
        assert ready.startswith("ready")
        url = re.search(r"curl .* (http://\S+)", line).group(1)
        assert requests.post(url, data=png, timeout=60).json()["instances"]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("stopped\n", None)
        assert process.returncode == 0
    assert not processes_of(str(tmp_path))
    assert not list(scratch.glob("polarmask-*"))
