"""The pods of a training job are held to the same rules as those that manifests describe."""

import pytest

from manifest_rules import name_of, pod_templates, problems_of
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.parameters.train_on import PYTORCHJOB
from polarmask_components.training.job_identity import JOB_RESOURCES
from polarmask_components.training.pytorchjob import manifest_of
from training_jobs import training_job


def job(**changes):
    fields = {"nodes": 2, "job": JobSettings(gpus_per_node=4)} | changes
    return manifest_of(training_job(namespace="polarmask", image=TRAINER_IMAGE, **fields))


def find(objects, name):
    return next(thing for thing in objects if name_of(thing) == name)


@pytest.mark.parametrize("changes", [{}, {"min_nodes": 1}, {"nodes": 1}], ids=str)
def test_its_pods_keep_to_the_rules_of_the_namespace(kind, changes):
    assert problems_of([*kind, job(**changes)]) == []


def test_its_pods_find_the_network_rule_that_is_meant_for_them(kind):
    chosen = find(kind, "NetworkPolicy/training")["spec"]["podSelector"]["matchLabels"]
    for _, template in pod_templates([job()]):
        assert chosen.items() <= template["metadata"]["labels"].items()


def test_the_pipeline_may_start_and_end_it(kind):
    rules = find(kind, "Role/polarmask-pipeline")["rules"]
    for resource in [JOB_RESOURCES[PYTORCHJOB]]:
        of_it = (each for each in rules if each["apiGroups"] == [resource.group])
        rule = next(each for each in of_it if each["resources"] == [resource.plural])
        assert {"create", "get", "delete"} == set(rule["verbs"])
