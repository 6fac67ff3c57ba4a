"""The pods of a training job are held to the same rules as those that manifests describe."""

import os
from pathlib import Path

import pytest

from kube.trainer import pod_of
from manifest_rules import name_of, pod_templates, problems_of, render
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.parameters.train_on import TRAINJOB
from polarmask_components.training import trainjob
from polarmask_components.training.job_identity import JOB_RESOURCES
from polarmask_components.training.pytorchjob import manifest_of
from training_jobs import training_job

K8S = Path(__file__).parents[2] / "k8s"


def job(**changes):
    fields = {"nodes": 2, "job": JobSettings(gpus_per_node=4)} | changes
    return manifest_of(training_job(namespace="polarmask", image=TRAINER_IMAGE, **fields))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The TrainingRuntime as an overlay gets it."""
    folder = tmp_path_factory.mktemp("overlay")
    component = os.path.relpath(K8S / "components/trainer", folder.resolve())
    (folder / "kustomization.yaml").write_text(f"components: [{component}]\n")
    (made,) = render(folder)
    return made


def trainjob_pod(runtime, **changes):
    """Return the pod that Kubeflow Trainer makes of the runtime and a job."""
    made = training_job(namespace="polarmask", image=TRAINER_IMAGE, on=TRAINJOB, **changes)
    return pod_of(trainjob.manifest_of(made), runtime)


def find(objects, name):
    return next(thing for thing in objects if name_of(thing) == name)


@pytest.mark.parametrize("changes", [{}, {"min_nodes": 1}, {"nodes": 1}], ids=str)
def test_its_pods_keep_to_the_rules_of_the_namespace(kind, changes):
    assert problems_of([*kind, job(**changes)]) == []


def test_the_pods_of_a_trainjob_keep_to_the_rules_of_the_namespace(kind, runtime):
    pod = trainjob_pod(runtime, nodes=2, job=JobSettings(gpus_per_node=4))
    of_job = {"kind": "Job", "metadata": pod["metadata"], "spec": {"template": pod}}
    assert problems_of([*kind, of_job]) == []


def test_the_pods_of_both_kinds_of_jobs_are_equal(runtime):
    settings = JobSettings(
        gpus_per_node=4,
        image_pull_secret="registry",
        service_account="trainer",
        node_selector={"gpu": "h100"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        env={"NCCL_DEBUG": "INFO"},
    )
    one = trainjob_pod(runtime, nodes=2, job=settings)
    (_, other), *_ = pod_templates([job(nodes=2, job=settings)])
    for name in ("labels", "annotations"):
        assert other["metadata"][name].items() <= one["metadata"][name].items()
    for name in ("restartPolicy", "hostname", "subdomain"):  # the operator adds the first later
        del one["spec"][name]
    (of_one,), (of_other,) = (pod["spec"].pop("containers") for pod in (one, other))
    assert one["spec"] == other["spec"]
    for container in (of_one, of_other):
        del container["name"]
        container["args"][container["args"].index("--spec") + 1] = "hash"
    variables = of_other.pop("env")
    assert of_one.pop("env")[: len(variables)] == variables
    assert of_other.pop("envFrom") == [{"secretRef": {"name": "polarmask-s3"}}]
    assert of_one == of_other


def test_its_pods_find_the_network_rule_that_is_meant_for_them(kind, runtime):
    chosen = find(kind, "NetworkPolicy/training")["spec"]["podSelector"]["matchLabels"]
    for template in (trainjob_pod(runtime), *(each for _, each in pod_templates([job()]))):
        assert chosen.items() <= template["metadata"]["labels"].items()


def test_the_pipeline_may_start_and_end_it(kind):
    rules = find(kind, "Role/polarmask-pipeline")["rules"]
    for resource in JOB_RESOURCES.values():
        of_it = (each for each in rules if each["apiGroups"] == [resource.group])
        rule = next(each for each in of_it if each["resources"] == [resource.plural])
        assert {"create", "get", "delete"} == set(rule["verbs"])
