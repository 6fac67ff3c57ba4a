"""What a namespace with Pod Security `restricted` refuses."""

_LABEL = "pod-security.kubernetes.io/enforce"
_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
}


def enforces_restricted(namespace):
    """Return whether a Namespace allows only restricted pods."""
    return namespace["metadata"].get("labels", {}).get(_LABEL) == "restricted"


def violations(spec):
    """Return the violations of `restricted` in a pod's spec, as the API server writes them."""
    found = [f"{name}=true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    for volume in spec.get("volumes", []):
        if not _VOLUMES & volume.keys():
            found.append(f'restricted volume types (volume "{volume["name"]}")')
    pod = spec.get("securityContext") or {}
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        for problem in _violations_of(container.get("securityContext") or {}, pod):
            found.append(f'container "{container["name"]}" {problem}')
    return found


def _violations_of(own, pod):
    both = pod | own
    if own.get("privileged"):
        yield "must not set securityContext.privileged=true"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "must set securityContext.allowPrivilegeEscalation=false"
    if "ALL" not in own.get("capabilities", {}).get("drop", []):
        yield 'must set securityContext.capabilities.drop=["ALL"]'
    if both.get("runAsNonRoot") is not True:
        yield "must set securityContext.runAsNonRoot=true"
    if both.get("runAsUser") == 0:
        yield "must not set runAsUser=0"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield 'must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
