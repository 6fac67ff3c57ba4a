"""What a manifest of ours has to keep to, as functions that return what is wrong, as text.

The rules of Pod Security `restricted`, and those that a schema can't state: that names which refer
to each other agree, that everything is limited, and that nobody is given more than they need.
"""

import re
import subprocess

import yaml

# Made by people, or by an overlay of theirs: k8s/README.md says how.
SECRETS_OF_PEOPLE = {
    "polarmask-s3",
    "polarmask-model-store",
    "polarmask-tokens",
    "polarmask-tls",
}
# In no manifest: the steps, and pods of training jobs (see test_training_job.py).
PODS_OF_KUBEFLOW = (
    {"pipelines.kubeflow.org/v2_component": "true"},
    {"app.kubernetes.io/name": "polarmask-training"},
)
RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
LIMITED = {"cpu", "memory", "ephemeral-storage"}


def render(folder):
    """Return the objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def name_of(thing):
    return f"{thing['kind']}/{thing['metadata']['name']}"


def pod_templates(objects):
    """Yield where each pod is described, and its template."""
    for thing in objects:
        spec = thing.get("spec", {})
        if thing["kind"] == "PyTorchJob":
            for role, replicas in spec["pytorchReplicaSpecs"].items():
                yield f"{name_of(thing)} {role}", replicas["template"]
        elif "template" in spec and thing["kind"] != "TrainingRuntime":  # says half of a pod
            yield name_of(thing), spec["template"]


def containers_of(template):
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def problems_of(objects):
    """Return all that is wrong, one line each."""
    found = []
    for where, template in pod_templates(objects):
        for rule in POD_RULES:
            found += [f"{where}: {problem}" for problem in rule(template["spec"])]
        for container in containers_of(template):
            for rule in CONTAINER_RULES:
                at = f"{where} {container['name']}"
                found += [f"{at}: {problem}" for problem in rule(container)]
        found += [f"{where}: {problem}" for problem in unknown_references(template, objects)]
    for rule in OBJECT_RULES:
        found += rule(objects)
    return found


def unrestricted_pod(spec):
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1000) == 0:
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host's namespaces"
    for volume in spec.get("volumes", []):
        if not RESTRICTED_VOLUMES & set(volume):
            yield f"volume {volume['name']} is of a kind that `restricted` refuses"


def unneeded_token(spec):
    if spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the cluster"


def unknown_mounts(spec):
    known = {volume["name"] for volume in spec.get("volumes", [])}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in known:
                yield f"{container['name']} mounts {mount['name']}, which is no volume"


def unrestricted_container(container):
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root"


def unlimited_container(container):
    for kind in ("requests", "limits"):
        missing = LIMITED - set(container.get("resources", {}).get(kind, {}))
        if missing:
            yield f"states no {kind} of {', '.join(sorted(missing))}"


def unpinned_image(container):
    tag = re.search(r"(@sha256:[0-9a-f]{64}|:(?P<tag>[\w.-]+))$", container["image"])
    if tag is None or tag["tag"] == "latest":
        yield f"image {container['image']} may be another one tomorrow"


def unprobed_server(container):
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "ports" in container and probe not in container:
            yield f"listens and has no {probe}"


def unknown_references(template, objects):
    """Yield the secrets and accounts that nobody makes."""
    made = {name_of(thing) for thing in objects} | {f"Secret/{name}" for name in SECRETS_OF_PEOPLE}
    spec = template["spec"]
    used = {f"Secret/{v['secret']['secretName']}" for v in spec.get("volumes", []) if "secret" in v}
    for container in containers_of(template):
        sources = container.get("envFrom", [])
        used |= {f"Secret/{each['secretRef']['name']}" for each in sources if "secretRef" in each}
    if "serviceAccountName" in spec:
        used.add(f"ServiceAccount/{spec['serviceAccountName']}")
    for volume in spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            used.add(f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}")
    for missing in sorted(used - made):
        yield f"{missing} is used and not there"


def templates_matching(selector, objects):
    wanted = selector.items()
    templates = (template for _, template in pod_templates(objects))
    return [each for each in templates if wanted <= each["metadata"]["labels"].items()]


def unmatched_selectors(objects):
    for thing in objects:
        spec = thing.get("spec", {})
        selector = spec.get("selector") or {}
        if thing["kind"] in ("Deployment", "PodDisruptionBudget"):
            selector = selector["matchLabels"]
        elif thing["kind"] == "NetworkPolicy":
            selector = spec["podSelector"].get("matchLabels", {})
            if selector in PODS_OF_KUBEFLOW:
                continue
        elif thing["kind"] != "Service":
            continue
        matches = templates_matching(selector, objects)
        if not matches:
            yield f"{name_of(thing)}: selects no pod"
            continue
        yield from unknown_ports(thing, matches)


def unknown_ports(thing, templates):
    """Yield the named ports that the selected pods don't have."""
    spec = thing.get("spec", {})
    known = {
        port["name"]
        for template in templates
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
    }
    used = set()
    if thing["kind"] == "Service":
        used = {port["targetPort"] for port in spec["ports"]}
    elif thing["kind"] == "NetworkPolicy":
        used = {port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])}
    for port in sorted(used - known, key=str):
        yield f"{name_of(thing)}: port {port} is none of the pod's"


def unmatched_monitors(objects):
    services = [thing for thing in objects if thing["kind"] == "Service"]
    for thing in objects:
        if thing["kind"] != "ServiceMonitor":
            continue
        wanted = thing["spec"]["selector"]["matchLabels"].items()
        chosen = [each for each in services if wanted <= each["metadata"]["labels"].items()]
        ports = {port["name"] for each in chosen for port in each["spec"]["ports"]}
        for endpoint in thing["spec"]["endpoints"]:
            if endpoint["port"] not in ports:
                yield f"{name_of(thing)}: no Service has port {endpoint['port']}"


def unscaled_targets(objects):
    made = {name_of(thing) for thing in objects}
    for thing in objects:
        if thing["kind"] == "HorizontalPodAutoscaler":
            target = thing["spec"]["scaleTargetRef"]
            if f"{target['kind']}/{target['name']}" not in made:
                yield f"{name_of(thing)}: scales what is not there"


def generous_roles(objects):
    for thing in objects:
        if thing["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule in thing["rules"]:
            asked = {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
            if asked & {"*", "secrets", "pods/exec", "escalate", "bind", "impersonate"}:
                yield f"{name_of(thing)}: gives too much: {rule}"


def unbound_roles(objects):
    made = {name_of(thing) for thing in objects}
    for thing in objects:
        if thing["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            role = f"{thing['roleRef']['kind']}/{thing['roleRef']['name']}"
            if role not in made:
                yield f"{name_of(thing)}: binds {role}, which is not there"


def unguarded_namespaces(objects):
    for thing in objects:
        labels = thing["metadata"].get("labels", {})
        enforced = labels.get("pod-security.kubernetes.io/enforce")
        if thing["kind"] == "Namespace" and enforced != "restricted":
            yield f"{name_of(thing)}: does not enforce `restricted`"


POD_RULES = (unrestricted_pod, unneeded_token, unknown_mounts)
CONTAINER_RULES = (unrestricted_container, unlimited_container, unpinned_image, unprobed_server)
OBJECT_RULES = (
    unmatched_selectors,
    unmatched_monitors,
    unscaled_targets,
    generous_roles,
    unbound_roles,
    unguarded_namespaces,
)
