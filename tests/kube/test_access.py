"""Roles are enforced, and reviews answer from the same rules."""

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from kube.server import KubeServer

RULES = [
    {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
    {
        "apiGroups": ["apps"],
        "resources": ["deployments"],
        "resourceNames": ["mine"],
        "verbs": ["patch"],
    },
]


@pytest.fixture
def server():
    with KubeServer(rules={"launcher": RULES}) as running:
        yield running


def status_of(call, *args, **kwargs):
    with pytest.raises(ApiException) as caught:
        call(*args, **kwargs)
    return caught.value.status


def test_an_account_may_do_what_its_role_says_and_nothing_else(server):
    core = client.CoreV1Api(server.api_client("launcher"))
    assert core.list_namespaced_pod("ml").items == []
    with pytest.raises(ApiException) as caught:
        core.list_namespaced_secret("ml")
    assert caught.value.status == 403
    assert "system:serviceaccount:ml:launcher" in caught.value.body
    assert status_of(core.list_namespaced_pod, "default") == 403
    assert status_of(core.list_pod_for_all_namespaces) == 403
    assert status_of(core.create_namespaced_pod, "ml", {}) == 403


def test_a_rule_for_one_name_is_for_no_other(server):
    apps = client.AppsV1Api(server.api_client("launcher"))
    assert status_of(apps.patch_namespaced_deployment, "mine", "ml", {}) == 404
    assert status_of(apps.patch_namespaced_deployment, "yours", "ml", {}) == 403


def test_a_role_reaches_its_own_namespace_as_an_object(server):
    rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]
    server.update("Role", "launcher", lambda role: role["rules"].extend(rules))
    core = client.CoreV1Api(server.api_client("launcher"))
    assert core.read_namespace("ml").metadata.name == "ml"
    assert status_of(core.read_namespace, "default") == 403


def test_no_token_is_the_administrator_and_an_unknown_account_has_no_rights(server):
    core = client.CoreV1Api(server.api_client())
    assert core.list_namespaced_secret("ml").items == []
    core = client.CoreV1Api(server.api_client("unknown"))
    assert status_of(core.list_namespaced_pod, "ml") == 401


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ({"verb": "get", "resource": "pods", "subresource": "log"}, True),
        ({"verb": "delete", "resource": "pods"}, False),
        ({"verb": "patch", "group": "apps", "resource": "deployments", "name": "mine"}, True),
        ({"verb": "patch", "group": "apps", "resource": "deployments", "name": "yours"}, False),
        ({"verb": "list", "resource": "nodes"}, False),
    ],
)
def test_a_review_answers_as_the_rules_would(server, asked, allowed):
    api = client.AuthorizationV1Api(server.api_client("launcher"))
    body = {"spec": {"resourceAttributes": {"namespace": "ml", **asked}}}
    assert api.create_self_subject_access_review(body).status.allowed is allowed


def test_a_cluster_role_reaches_what_has_no_namespace(server):
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    server.create("ClusterRole", {"metadata": {"name": "see-nodes"}, "rules": rules})
    binding = {
        "metadata": {"name": "see-nodes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"},
        "subjects": [{"kind": "ServiceAccount", "name": "launcher", "namespace": "ml"}],
    }
    binding["roleRef"]["name"] = "see-nodes"
    server.create("ClusterRoleBinding", binding)
    assert client.CoreV1Api(server.api_client("launcher")).list_node().items == []
