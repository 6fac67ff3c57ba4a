"""The API server, through the official client."""

import threading
import time

import pytest
import requests
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from kube.errors import ApiError

JOBS = {"group": "kubeflow.org", "version": "v1", "namespace": "ml", "plural": "pytorchjobs"}


@pytest.fixture
def core(server):
    return client.CoreV1Api(server.api_client())


@pytest.fixture
def apps(server):
    return client.AppsV1Api(server.api_client())


@pytest.fixture
def custom(server):
    return client.CustomObjectsApi(server.api_client())


def config_map(name="a-map", **metadata):
    return {"metadata": {"name": name, **metadata}, "data": {"key": "value"}}


def deployment(name="a-deployment", image="web:1"):
    labels = {"app": name}
    containers = [
        {"name": "web", "image": image, "env": [{"name": "A", "value": "1"}]},
        {"name": "side", "image": "side:1"},
    ]
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
    }


def job(name="a-job", **changes):
    container = {"name": "pytorch", "image": "trainer:1", "command": ["true"]}
    replica = {"restartPolicy": "OnFailure", "template": {"spec": {"containers": [container]}}}
    spec = {"nprocPerNode": "1", "pytorchReplicaSpecs": {"Master": replica}, **changes}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def refusal(call, *args, **kwargs):
    with pytest.raises(ApiException) as caught:
        call(*args, **kwargs)
    return caught.value


def test_a_created_object_has_the_fields_of_the_server(core):
    made = core.create_namespaced_config_map("ml", config_map())
    assert made.metadata.uid
    assert made.metadata.creation_timestamp
    assert core.read_namespaced_config_map("a-map", "ml").data == {"key": "value"}
    assert refusal(core.create_namespaced_config_map, "ml", config_map()).status == 409
    assert refusal(core.read_namespaced_config_map, "other", "ml").status == 404
    assert refusal(core.create_namespaced_config_map, "nowhere", config_map()).status == 404


def test_a_name_is_generated_on_request(core):
    body = {"metadata": {"generateName": "run-"}}
    names = {core.create_namespaced_config_map("ml", body).metadata.name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("run-") for name in names)


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=a", ["one", "two"]),
        ("app!=a", ["three"]),
        ("app in (a, b),stage=x", ["one"]),
        ("app notin (a)", ["three"]),
        ("stage", ["one"]),
        ("!stage", ["two", "three"]),
    ],
)
def test_labels_select(core, selector, names):
    for name, labels in (
        ("one", {"app": "a", "stage": "x"}),
        ("two", {"app": "a"}),
        ("three", {"app": "b"}),
    ):
        core.create_namespaced_config_map("ml", config_map(name, labels=labels))
    found = core.list_namespaced_config_map("ml", label_selector=selector).items
    assert [each.metadata.name for each in found] == names


def test_fields_select(server, core):
    for name in ("one", "two"):
        core.create_namespaced_config_map("ml", config_map(name))
    found = core.list_namespaced_config_map("ml", field_selector="metadata.name=two").items
    assert [each.metadata.name for each in found] == ["two"]


def test_an_old_resource_version_is_a_conflict(core):
    first = core.create_namespaced_config_map("ml", config_map())
    core.patch_namespaced_config_map("a-map", "ml", {"data": {"key": "newer"}})
    first.data = {"key": "mine"}
    error = refusal(core.replace_namespaced_config_map, "a-map", "ml", first)
    assert error.status == 409
    assert "modified" in error.body
    patch = {"metadata": {"resourceVersion": first.metadata.resource_version}, "data": {"a": "b"}}
    assert refusal(core.patch_namespaced_config_map, "a-map", "ml", patch).status == 409


def test_an_update_without_a_change_makes_no_new_version(core):
    first = core.create_namespaced_config_map("ml", config_map())
    again = core.patch_namespaced_config_map("a-map", "ml", {"data": {"key": "value"}})
    assert again.metadata.resource_version == first.metadata.resource_version


def test_a_strategic_patch_merges_containers_by_name(apps):
    apps.create_namespaced_deployment("ml", deployment())
    container = {"name": "web", "image": "web:2", "env": [{"name": "B", "value": "2"}]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    found = apps.patch_namespaced_deployment("a-deployment", "ml", patch)
    web, side = found.spec.template.spec.containers
    assert (web.image, side.image) == ("web:2", "side:1")
    assert [each.name for each in web.env] == ["A", "B"]
    assert found.metadata.generation == 2


def test_a_json_patch_tests_and_replaces(apps):
    apps.create_namespaced_deployment("ml", deployment())
    path = "/spec/replicas"
    patch = [
        {"op": "test", "path": path, "value": 2},
        {"op": "replace", "path": path, "value": 5},
        {"op": "add", "path": "/metadata/annotations", "value": {"a/b": "c"}},
    ]
    found = apps.patch_namespaced_deployment("a-deployment", "ml", patch)
    assert found.spec.replicas == 5
    assert found.metadata.annotations == {"a/b": "c"}
    assert refusal(apps.patch_namespaced_deployment, "a-deployment", "ml", patch).status == 422


def test_a_custom_object_takes_no_strategic_patch(server):
    server.create("PyTorchJob", job())
    api = server.api_client()
    path = "/apis/kubeflow.org/v1/namespaces/ml/pytorchjobs/a-job"

    def patch(content_type):
        return api.call_api(
            *(path, "PATCH"),
            header_params={"Content-Type": content_type},
            body={"metadata": {"labels": {"a": "b"}}},
            response_type="object",
            _return_http_data_only=True,
        )

    assert refusal(patch, "application/strategic-merge-patch+json").status == 415
    assert patch("application/merge-patch+json")["metadata"]["labels"] == {"a": "b"}


def test_a_server_side_apply_creates_and_removes_its_fields(server):
    api = server.api_client()

    def apply(env):
        body = deployment()
        body["spec"]["template"]["spec"]["containers"][0]["env"] = env
        return api.call_api(
            *("/apis/apps/v1/namespaces/ml/deployments/a-deployment", "PATCH"),
            query_params=[("fieldManager", "tests")],
            header_params={"Content-Type": "application/apply-patch+yaml"},
            body=body | {"apiVersion": "apps/v1", "kind": "Deployment"},
            response_type="object",
            _return_http_data_only=True,
        )

    apply([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}])
    found = apply([{"name": "B", "value": "3"}])
    assert found["spec"]["template"]["spec"]["containers"][0]["env"] == [
        {"name": "B", "value": "3"}
    ]


def test_status_is_written_through_its_own_address_only(server, custom):
    custom.create_namespaced_custom_object(**JOBS, body=job() | {"status": {"conditions": []}})
    address = {**JOBS, "name": "a-job"}
    found = custom.get_namespaced_custom_object(**address)
    assert "status" not in found
    found["status"] = {"startTime": "x"}
    custom.replace_namespaced_custom_object_status(**address, body=found)
    found = custom.get_namespaced_custom_object(**address)
    assert found["status"] == {"startTime": "x"}
    assert found["metadata"]["generation"] == 1
    del found["status"]
    custom.replace_namespaced_custom_object(**address, body=found)
    assert server.get("PyTorchJob", "a-job")["status"] == {"startTime": "x"}


def test_a_secret_is_written_as_text_and_read_encoded(core):
    body = {"metadata": {"name": "keys"}, "stringData": {"key": "secret"}}
    core.create_namespaced_secret("ml", body)
    assert core.read_namespaced_secret("keys", "ml").data == {"key": "c2VjcmV0"}


def test_a_scale_changes_the_number_of_replicas(apps):
    apps.create_namespaced_deployment("ml", deployment())
    apps.patch_namespaced_deployment_scale("a-deployment", "ml", {"spec": {"replicas": 7}})
    assert apps.read_namespaced_deployment_scale("a-deployment", "ml").spec.replicas == 7
    assert apps.read_namespaced_deployment("a-deployment", "ml").spec.replicas == 7


def test_a_dry_run_checks_and_stores_nothing(server, core):
    core.create_namespaced_config_map("ml", config_map(), dry_run="All")
    assert server.list("ConfigMap") == []


def test_a_watch_reports_changes_after_a_list(server, core):
    core.create_namespaced_config_map("ml", config_map("before"))
    version = core.list_namespaced_config_map("ml").metadata.resource_version
    labels = {"labels": {"app": "a"}}

    def act():
        core.create_namespaced_config_map("ml", config_map("one", **labels))
        core.create_namespaced_config_map("ml", config_map("other"))
        core.patch_namespaced_config_map("one", "ml", {"data": {"key": "newer"}})
        core.patch_namespaced_config_map("one", "ml", {"metadata": {"labels": {"app": "b"}}})

    threading.Timer(0.1, act).start()
    events = []
    stream = watch.Watch()
    for event in stream.stream(
        core.list_namespaced_config_map, "ml", label_selector="app=a", resource_version=version
    ):
        events.append((event["type"], event["object"].metadata.name))
        if len(events) == 3:
            stream.stop()
    assert events == [("ADDED", "one"), ("MODIFIED", "one"), ("DELETED", "one")]


def test_a_watch_ends_at_its_time_limit(core):
    started = time.monotonic()
    events = watch.Watch().stream(core.list_namespaced_config_map, "ml", timeout_seconds=1)
    assert list(events) == []
    assert 0.9 < time.monotonic() - started < 5


def test_a_watch_from_a_dropped_version_is_gone(server, core):
    version = core.list_namespaced_config_map("ml").metadata.resource_version
    core.create_namespaced_config_map("ml", config_map())
    server.store.compact()
    # The client lists again once, from the given version: 410 again.
    stream = watch.Watch().stream(
        core.list_namespaced_config_map, "ml", resource_version=version, timeout_seconds=5
    )
    assert refusal(list, stream).status == 410


def test_dependents_are_deleted_with_their_owner(server):
    owner = server.create("ConfigMap", config_map("owner"))
    reference = {
        **{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner"},
        "uid": owner["metadata"]["uid"],
    }
    server.create("ConfigMap", config_map("owned", ownerReferences=[reference]))
    server.create("ConfigMap", config_map("free"))
    server.delete("ConfigMap", "owner")
    assert [each["metadata"]["name"] for each in server.list("ConfigMap")] == ["free"]
    # An object created after its owner's deletion is collected, too.
    server.create("ConfigMap", config_map("late", ownerReferences=[reference]))
    assert server.find("ConfigMap", "late") is None


def test_dependents_stay_with_propagation_orphan(server, core):
    owner = server.create("ConfigMap", config_map("owner"))
    reference = {
        **{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner"},
        "uid": owner["metadata"]["uid"],
    }
    server.create("ConfigMap", config_map("owned", ownerReferences=[reference]))
    core.delete_namespaced_config_map("owner", "ml", propagation_policy="Orphan")
    assert server.get("ConfigMap", "owned")["metadata"]["ownerReferences"] == []


def test_a_finalizer_keeps_an_object_until_it_is_removed(server, core):
    core.create_namespaced_config_map("ml", config_map(finalizers=["tests/hold"]))
    core.delete_namespaced_config_map("a-map", "ml")
    assert core.read_namespaced_config_map("a-map", "ml").metadata.deletion_timestamp
    core.patch_namespaced_config_map("a-map", "ml", {"metadata": {"finalizers": None}})
    assert server.find("ConfigMap", "a-map") is None


def test_a_foreground_deletion_waits_for_dependents(server, core):
    owner = server.create("ConfigMap", config_map("owner"))
    reference = {
        **{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "blockOwnerDeletion": True},
        "uid": owner["metadata"]["uid"],
    }
    held = config_map("owned", ownerReferences=[reference], finalizers=["tests/hold"])
    server.create("ConfigMap", held)
    core.delete_namespaced_config_map("owner", "ml", propagation_policy="Foreground")
    assert "deletionTimestamp" in server.get("ConfigMap", "owner")["metadata"]
    server.update("ConfigMap", "owned", lambda obj: obj["metadata"].update(finalizers=[]))
    assert server.list("ConfigMap") == []


def test_a_deletion_with_another_uid_is_a_conflict(core):
    core.create_namespaced_config_map("ml", config_map())
    options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another"))
    error = refusal(core.delete_namespaced_config_map, "a-map", "ml", body=options)
    assert error.status == 409


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        (lambda body: body["metadata"].update(name="9lives"), "DNS-1035"),
        (lambda body: body["metadata"].update(name="x" * 60), "DNS-1035"),
        (lambda body: body["spec"].update(nprocPerNode=2), "must be of type str"),
        (lambda body: body["spec"].update(nodes=2), "spec.nodes: unknown field"),
        (lambda body: body["spec"].update(elasticPolicy={"maxReplicas": 2}), "Worker"),
        (lambda body: body["spec"].update(runPolicy={"cleanPodPolicy": "Some"}), "Unsupported"),
        (lambda body: master(body).update(replicas=2), "replicas: Invalid value: 2"),
        (lambda body: master(body).update(restartPolicy="Sometimes"), "Unsupported"),
        (lambda body: container(body).update(name="trainer"), "named pytorch"),
        (lambda body: container(body).update(gpus=1), "'gpus' was unexpected"),
        (lambda body: container(body).pop("image"), "image: Required"),
        (lambda body: body["spec"].pop("pytorchReplicaSpecs"), "Required value"),
    ],
)
def test_a_job_that_the_operator_would_refuse_is_refused(custom, change, expected_text):
    body = job()
    change(body)
    error = refusal(custom.create_namespaced_custom_object, **JOBS, body=body)
    assert error.status == 422
    assert expected_text in error.body


def master(body):
    return body["spec"]["pytorchReplicaSpecs"]["Master"]


def container(body):
    return master(body)["template"]["spec"]["containers"][0]


def test_a_deployment_whose_selector_misses_its_pods_is_refused(apps):
    body = deployment()
    body["spec"]["selector"]["matchLabels"] = {"app": "other"}
    error = refusal(apps.create_namespaced_deployment, "ml", body)
    assert error.status == 422
    assert "selector does not match" in error.body


def test_a_pod_without_a_volume_that_it_mounts_is_refused(server):
    mount = {"name": "data", "mountPath": "/data"}
    container = {"name": "main", "image": "any", "volumeMounts": [mount]}
    pod = {"metadata": {"name": "a-pod"}, "spec": {"containers": [container]}}
    with pytest.raises(ApiError, match="Not found: 'data'"):
        server.create("Pod", pod)


def test_custom_objects_need_their_definition(server, custom):
    extensions = client.ApiextensionsV1Api(server.api_client())
    name = "pytorchjobs.kubeflow.org"
    found = extensions.read_custom_resource_definition(name)
    assert [each.name for each in found.spec.versions if each.served] == ["v1"]
    extensions.delete_custom_resource_definition(name)
    error = refusal(custom.list_namespaced_custom_object, **JOBS)
    assert error.status == 404


def test_a_body_that_is_not_json_is_a_bad_request(server):
    answer = requests.post(f"{server.url}/api/v1/namespaces/ml/pods", data="{", timeout=10)
    assert answer.status_code == 400
    assert answer.json()["reason"] == "BadRequest"


def test_clients_reconnect_after_an_outage(server, core):
    core.create_namespaced_config_map("ml", config_map())
    with server.outage(), pytest.raises(HTTPError):
        core.list_namespaced_config_map("ml")
    assert core.read_namespaced_config_map("a-map", "ml").data == {"key": "value"}
