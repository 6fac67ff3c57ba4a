"""What `kubectl apply -k` would send, checked without a cluster."""

import copy
import re
from itertools import product
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from manifest_rules import name_of, problems_of
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.parameters.job_settings import JobSettings

ROOT = Path(__file__).parents[2]
VERSIONS = ["1.31", "1.32", "1.33", "1.34", "1.35"]
# of operators: no schema of Kubernetes knows them
FOREIGN_KINDS = {"ServiceMonitor"}


def find(objects, name):
    return next(thing for thing in objects if name_of(thing) == name)


def container(objects, name):
    spec = find(objects, "Deployment/polarmask")["spec"]["template"]["spec"]
    every = [*spec["initContainers"], *spec["containers"]]
    return next(each for each in every if each["name"] == name)


def test_kubernetes_knows_every_field(overlay):
    known = [thing for thing in overlay if thing["kind"] not in FOREIGN_KINDS]
    for version, thing in product(VERSIONS, known):
        kubernetes_validate.validate(thing, version, strict=True)


def test_the_policy_for_jobs_fits_the_defaults():
    """It is applied by hand: kustomize would put it into the namespace."""
    policy, binding = yaml.safe_load_all((ROOT / "k8s/policies/jobs.yaml").read_text())
    for version, thing in product(VERSIONS, (policy, binding)):
        kubernetes_validate.validate(thing, version, strict=True)
    account, environment, volumes = policy["spec"]["validations"]
    secret = JobSettings().secret
    assert f'name == "{secret}"' in environment["expression"]
    assert f'secretName == "{secret}"' in volumes["expression"]
    assert 'serviceAccountName == "default"' in account["expression"]
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]


def test_the_check_of_fields_finds_a_misspelt_one(kind):
    deployment = copy.deepcopy(find(kind, "Deployment/polarmask"))
    deployment["spec"]["minReadySecond"] = 5
    with pytest.raises(kubernetes_validate.ValidationError, match="minReadySecond"):
        kubernetes_validate.validate(deployment, "1.31", strict=True)


def test_an_overlay_keeps_to_the_rules(overlay):
    assert problems_of(overlay) == []


def test_everything_lives_in_one_namespace_that_enforces_restricted_pods(overlay):
    cluster_wide = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
    places = {t["metadata"].get("namespace") for t in overlay if t["kind"] not in cluster_wide}
    assert places == {find(overlay, "Namespace/polarmask")["metadata"]["name"]}


def server(objects):
    return find(objects, "Deployment/polarmask")["spec"]["template"]["spec"]


def without(mapping, name):
    del mapping[name]


def torchserve(objects):
    return container(objects, "torchserve")


# What is broken -> the text that names it.
FAULTS = {
    "may run as root": lambda o: without(server(o)["securityContext"], "runAsNonRoot"),
    "polarmask: may run as root": lambda o: server(o)["securityContext"].update(runAsUser=0),
    "no seccomp profile": lambda o: without(server(o)["securityContext"], "seccompProfile"),
    "host's namespaces": lambda o: server(o).update(hostNetwork=True),
    "kind that `restricted` refuses": lambda o: server(o)["volumes"].append(
        {"name": "node", "hostPath": {"path": "/"}}
    ),
    "gets a token": lambda o: without(server(o), "automountServiceAccountToken"),
    "is no volume": lambda o: server(o)["volumes"].pop(),
    "may gain privileges": lambda o: without(
        torchserve(o)["securityContext"], "allowPrivilegeEscalation"
    ),
    "keeps capabilities": lambda o: without(torchserve(o)["securityContext"], "capabilities"),
    "may write to its root": lambda o: torchserve(o)["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "no limits of memory": lambda o: without(torchserve(o)["resources"]["limits"], "memory"),
    "no requests of cpu": lambda o: without(torchserve(o)["resources"]["requests"], "cpu"),
    "another one tomorrow": lambda o: torchserve(o).update(image="host:5000/polarmask-serving"),
    "serving:latest may be": lambda o: torchserve(o).update(image="polarmask-serving:latest"),
    "no readinessProbe": lambda o: without(container(o, "proxy"), "readinessProbe"),
    "Secret/typo is used": lambda o: container(o, "fetch-model").update(
        envFrom=[{"secretRef": {"name": "typo"}}]
    ),
    "ServiceAccount/typo is used": lambda o: server(o).update(serviceAccountName="typo"),
    "Service/polarmask: selects no pod": lambda o: find(o, "Service/polarmask")["spec"].update(
        selector={"app.kubernetes.io/name": "typo"}
    ),
    "NetworkPolicy/serving: selects no pod": lambda o: find(o, "NetworkPolicy/serving")[
        "spec"
    ].update(podSelector={"matchLabels": {"app": "typo"}}),
    "Service/polarmask: port typo": lambda o: find(o, "Service/polarmask")["spec"]["ports"][
        0
    ].update(targetPort="typo"),
    "NetworkPolicy/serving: port 8081": lambda o: find(o, "NetworkPolicy/serving")["spec"][
        "ingress"
    ][0]["ports"].append({"port": 8081}),
    "scales what is not there": lambda o: find(o, "HorizontalPodAutoscaler/polarmask")["spec"][
        "scaleTargetRef"
    ].update(name="typo"),
    "gives too much": lambda o: find(o, "Role/polarmask-pipeline")["rules"].append(
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    ),
    "binds Role/typo": lambda o: find(o, "RoleBinding/polarmask-pipeline")["roleRef"].update(
        name="typo"
    ),
    "does not enforce": lambda o: without(find(o, "Namespace/polarmask")["metadata"], "labels"),
}


@pytest.mark.parametrize("expected_text", FAULTS)
def test_the_rules_find(expected_text, kind):
    broken = copy.deepcopy(kind)
    FAULTS[expected_text](broken)
    found = problems_of(broken)
    assert found
    assert all(re.search(expected_text, problem) for problem in found)


def test_the_account_of_kubeflow_without_profiles_has_all_rights_of_the_pipelines_own(overlay):
    bindings = [each for each in overlay if each["kind"].endswith("RoleBinding")]
    own = {"kind": "ServiceAccount", "name": "polarmask-pipeline", "namespace": "polarmask"}
    runner = {"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}
    bound = {each["roleRef"]["name"] for each in bindings if own in each["subjects"]}
    assert bound == {"polarmask-pipeline", "polarmask-preflight", "polarmask-trial"}
    assert bound == {each["roleRef"]["name"] for each in bindings if runner in each["subjects"]}


def test_pods_reach_name_servers_each_other_and_the_storage_of_the_overlay(overlay):
    denied = find(overlay, "NetworkPolicy/default-deny")["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name in ("serving", "training", "candidate"):
        rules = find(overlay, f"NetworkPolicy/{name}")["spec"]["egress"]
        assert all(rule.get("to") for rule in rules)
        ports = {port["port"] for rule in rules for port in rule.get("ports", [])}
        (storage,) = ports - {53}
        assert storage in (443, 8333)


def test_whoever_asks_a_candidate_may_ask_the_server(overlay):
    def sources(name):
        rules = find(overlay, f"NetworkPolicy/{name}")["spec"]["ingress"]
        return [each for rule in rules for each in rule["from"]]

    open_to = [each.get("namespaceSelector") for each in sources("serving")]
    for source in sources("candidate"):
        assert source["podSelector"]["matchLabels"]
        assert source.get("namespaceSelector") in open_to


def test_applying_again_changes_neither_the_model_nor_the_number_of_pods(overlay):
    """The deploy step and the autoscaler own these fields; kubectl leaves what it is not given."""
    deployment = find(overlay, "Deployment/polarmask")
    assert "replicas" not in deployment["spec"]
    assert "annotations" not in deployment["spec"]["template"]["metadata"]
    assert "env" not in container(overlay, "fetch-model")


def test_a_roll_out_takes_no_pod_away_before_another_one_answers(overlay):
    spec = find(overlay, "Deployment/polarmask")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    # The server outlives the proxy: 10 s to be forgotten, 40 s for answers, 2 s between the two.
    hooks = [
        container(overlay, name)["lifecycle"]["preStop"]["exec"]["command"][3]
        for name in ("torchserve", "proxy")
    ]
    assert hooks == ["server", "proxy"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 52 + 10
    start = torchserve(overlay)["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] < spec["progressDeadlineSeconds"]


def test_only_who_fetches_the_model_has_keys_and_they_are_others_than_the_pipelines(overlay):
    assert "envFrom" not in torchserve(overlay)
    (source,) = container(overlay, "fetch-model")["envFrom"]
    assert source["secretRef"]["name"] == "polarmask-model-store"


def test_only_the_proxy_listens_outside_of_the_pod(overlay):
    assert "ports" not in torchserve(overlay)
    proxy = container(overlay, "proxy")
    assert {port["containerPort"] for port in proxy["ports"]} == {8080, 8082}
    assert "8081" not in yaml.safe_dump(overlay)


def test_a_pod_of_the_gpu_overlay_has_a_gpu_and_one_worker_for_it(gpu):
    serve = torchserve(gpu)
    assert serve["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "WORKERS", "value": "1"} in serve["env"]


def test_images_have_the_tag_that_make_images_gives_and_steps_expect(kind):
    tag = TRAINER_IMAGE.partition(":")[2]
    assert f"IMAGE_TAG:-{tag}" in (ROOT / "images" / "build.sh").read_text()
    assert torchserve(kind)["image"] == f"polarmask-serving:{tag}"
