"""Environment, volumes and command line of a container."""

import base64
import json
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path

from kube.errors import ApiError
from kube.quantity import quantity

_SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
# Replace what a real container has: a network of its own and a limit of cores.
_OF_THE_MACHINE = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


class ConfigError(Exception):
    """A container can't be configured yet: a Secret, a ConfigMap or an address is missing."""

    def __init__(self, message, reason="CreateContainerConfigError"):
        super().__init__(message)
        self.reason = reason


class Volumes:
    """The volumes of one pod as folders; they live as long as the pod.

    Secrets and ConfigMaps look as on a real node: each entry is a link through `..data`,
    a link itself, which is replaced when they change.
    """

    def __init__(self, server, pod, folder):
        self._server = server
        self._namespace = pod["metadata"]["namespace"]
        self._folders = {}
        self._changed = {}  # folder -> when its content was found to be old
        self._projected = {}  # folder -> (kind, reference, entries, number of the version)
        for volume in pod["spec"].get("volumes", []):
            path = Path(folder) / "volumes" / volume["name"]
            path.mkdir(parents=True)
            self._fill(volume, path)
            self._folders[volume["name"]] = path

    def _fill(self, volume, path):
        if "secret" in volume:
            self._project(path, "Secret", volume["secret"])
        elif "configMap" in volume:
            self._project(path, "ConfigMap", volume["configMap"])
        elif "emptyDir" not in volume:
            raise ConfigError(f"volume {volume['name']}: the tests' kubelet has no such volumes")

    def _project(self, path, kind, reference, number=0):
        entries = read_map(self._server, kind, reference, self._namespace)
        version, fresh = path / f"..version-{number}", path / "..data_tmp"
        version.mkdir()
        for name, value in entries.items():
            (version / name).write_text(value)
        fresh.symlink_to(version.name)
        fresh.rename(path / "..data")
        for name in entries:
            if not (path / name).is_symlink():
                (path / name).symlink_to(Path("..data") / name)
        for link in path.iterdir():
            if not link.name.startswith("..") and link.name not in entries:
                link.unlink()
        if number:
            shutil.rmtree(path / f"..version-{number - 1}")
        self._projected[path] = (kind, reference, entries, number)

    def refresh(self, lag):
        """Write changed Secrets and ConfigMaps to the folders, so many seconds after the change."""
        for path, (kind, reference, entries, number) in list(self._projected.items()):
            try:
                now = read_map(self._server, kind, reference, self._namespace)
            except ConfigError:  # deleted: pods keep the last content
                continue
            if now == entries:
                self._changed.pop(path, None)
                continue
            changed = self._changed.setdefault(path, time.monotonic())
            if time.monotonic() - changed >= lag:
                del self._changed[path]
                self._project(path, kind, reference, number + 1)

    def mapping(self, container):
        """Return a function that replaces mount paths in a text by folders of this machine."""
        folders = {}
        for mount in container.get("volumeMounts", []):
            if mount["mountPath"] != "/dev/shm":  # the machine's own folder is used
                folder = self._folders[mount["name"]] / mount.get("subPath", "")
                folder.mkdir(parents=True, exist_ok=True)
                folders[mount["mountPath"].rstrip("/")] = str(folder)
        if not folders:
            return lambda text: text
        paths = "|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True))
        pattern = re.compile(rf"(?<![\w./-])({paths})(/[\w./-]*)?(?![\w.-])")

        def replaced(found):
            path = Path(found[0])
            # A test's own file in a folder below a /tmp that the pod mounts, too.
            if path.parent.exists() and path.parent != Path(found[1]) and found[2]:
                return found[0]
            return folders[found[1]] + (found[2] or "")

        return lambda text: pattern.sub(replaced, text)


def read_map(server, kind, reference, namespace):
    """Return the entries of a Secret or ConfigMap as text; ConfigError if it is not there."""
    name = reference.get("name") or reference.get("secretName")
    try:
        obj = server.get(kind, name, namespace)
    except ApiError:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{name}" not found') from None
    data = obj.get("data") or {}
    if kind == "ConfigMap":
        return data
    return {key: base64.b64decode(text).decode() for key, text in data.items()}


def environment_of(server, pod, container, *, volumes, home):
    """Return the environment of a container: only what the pod declares.

    Args:
        server: Holds Secrets and Services.
        pod: The pod with its current status.
        container: The container's part of its spec.
        volumes: The pod's `Volumes`.
        home: A folder of the pod, removed with it.

    Raises:
        ConfigError: Something that it refers to does not exist (yet).
    """
    own = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *_SYSTEM_PATH]),
        "HOSTNAME": pod["metadata"]["name"],
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "TMPDIR": str(home),
        **_OF_THE_MACHINE,
    }
    in_folders = volumes.mapping(container)
    namespace = pod["metadata"]["namespace"]
    return own | {
        name: in_folders(_with_address(server, namespace, value))
        for name, value in _declared(server, pod, container).items()
    }


def _declared(server, pod, container):
    declared = {}
    for source in container.get("envFrom", []):
        kind = "Secret" if "secretRef" in source else "ConfigMap"
        reference = source.get("secretRef") or source["configMapRef"]
        for name, value in read_map(server, kind, reference, pod["metadata"]["namespace"]).items():
            declared[source.get("prefix", "") + name] = value
    for entry in container.get("env", []):
        if "valueFrom" in entry:
            value = _value_from(server, pod, container, entry["valueFrom"])
        else:
            value = expand(entry.get("value", ""), declared)
        if value is not None:
            declared[entry["name"]] = value
    return declared


def expand(text, environment):
    """Replace `$(NAME)` by the variable's value, as the kubelet does; `$$(NAME)` stays."""

    def value(found):
        if found[1]:
            return found[0][1:]
        return environment.get(found[2], found[0])

    return re.sub(r"(\$)?\$\(([A-Za-z_][\w.-]*)\)", value, text)


def _value_from(server, pod, container, source):
    namespace = pod["metadata"]["namespace"]
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return _resource(container, source["resourceFieldRef"])
    kind = "Secret" if "secretKeyRef" in source else "ConfigMap"
    reference = source.get("secretKeyRef") or source["configMapKeyRef"]
    entries = read_map(server, kind, reference, namespace)
    if reference["key"] not in entries and not reference.get("optional"):
        name = reference["name"]
        raise ConfigError(f"couldn't find key {reference['key']} in {kind} {namespace}/{name}")
    return entries.get(reference["key"])


def _field(pod, path):
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return pod["metadata"].get(found[1], {}).get(found[2], "")
    value = pod
    for name in path.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return value if isinstance(value, str) else json.dumps(value)


def _resource(container, reference):
    of, name = reference["resource"].split(".", 1)
    given = container.get("resources", {}).get(of, {}).get(name, "1")
    return str(math.ceil(quantity(given) / quantity(reference.get("divisor", "1") or "1")))


def _with_address(server, namespace, value):
    """Replace the name of a headless Service, `name` or `name:port`, by its pod's address.

    `pod.name` is the pod of the Service with this host name.

    Replaces the cluster's DNS, which this machine does not use. Until the pod has an address
    the container waits, as it does for the operator's init container.
    """
    name, colon, port = value.partition(":")
    if not re.fullmatch(r"([a-z0-9-]+\.)?[a-z][a-z0-9-]*", name) or (colon and not port.isdigit()):
        return value
    host, _, of_service = name.rpartition(".")
    service = server.find("Service", of_service, namespace)
    if service is None or service["spec"].get("clusterIP") != "None":
        return value
    labels = ",".join(f"{key}={label}" for key, label in service["spec"]["selector"].items())
    for pod in server.list("Pod", labels, namespace=namespace):
        address = pod.get("status", {}).get("podIP")
        if address and host in ("", pod["spec"].get("hostname")):
            return f"{address}{colon}{port}"
    raise ConfigError(f"waiting for the address of {name}", "PodInitializing")
