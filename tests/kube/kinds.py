"""The kinds of objects of the server, and their places in the API."""

from dataclasses import dataclass

from kube.errors import ApiError


@dataclass(frozen=True)
class Kind:
    """One kind of object; `custom` ones are defined by a CustomResourceDefinition."""

    name: str
    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    has_status: bool = False
    has_scale: bool = False
    custom: bool = False
    short_names: tuple[str, ...] = ()

    @property
    def api_version(self):
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self):
        """Return the plural with its group, as in error messages and CRDs."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_TRAINER = "trainer.kubeflow.org"
_RBAC = "rbac.authorization.k8s.io"
KINDS = (
    Kind("Pod", "pods", has_status=True, short_names=("po",)),
    Kind("Service", "services", has_status=True, short_names=("svc",)),
    Kind("ConfigMap", "configmaps", short_names=("cm",)),
    Kind("Secret", "secrets"),
    Kind("Event", "events", short_names=("ev",)),
    Kind("ServiceAccount", "serviceaccounts", short_names=("sa",)),
    Kind("PersistentVolumeClaim", "persistentvolumeclaims", short_names=("pvc",)),
    Kind("ResourceQuota", "resourcequotas", has_status=True, short_names=("quota",)),
    Kind("Namespace", "namespaces", namespaced=False, has_status=True, short_names=("ns",)),
    Kind("Node", "nodes", namespaced=False, has_status=True, short_names=("no",)),
    Kind("Deployment", "deployments", "apps", has_status=True, has_scale=True),
    Kind("ReplicaSet", "replicasets", "apps", has_status=True, has_scale=True),
    Kind("Job", "jobs", "batch", has_status=True),
    Kind("HorizontalPodAutoscaler", "horizontalpodautoscalers", "autoscaling", "v2"),
    Kind("PodDisruptionBudget", "poddisruptionbudgets", "policy"),
    Kind("NetworkPolicy", "networkpolicies", "networking.k8s.io"),
    Kind("Role", "roles", _RBAC),
    Kind("RoleBinding", "rolebindings", _RBAC),
    Kind("ClusterRole", "clusterroles", _RBAC, namespaced=False),
    Kind("ClusterRoleBinding", "clusterrolebindings", _RBAC, namespaced=False),
    Kind(
        *("CustomResourceDefinition", "customresourcedefinitions", "apiextensions.k8s.io"),
        namespaced=False,
    ),
    Kind("PyTorchJob", "pytorchjobs", "kubeflow.org", has_status=True, custom=True),
    Kind("TrainJob", "trainjobs", _TRAINER, "v1alpha1", has_status=True, custom=True),
    Kind("TrainingRuntime", "trainingruntimes", _TRAINER, "v1alpha1", custom=True),
    Kind("Workflow", "workflows", "argoproj.io", "v1alpha1", custom=True),
    Kind("ServiceMonitor", "servicemonitors", "monitoring.coreos.com", custom=True),
    Kind(
        *("LocalQueue", "localqueues", "kueue.x-k8s.io", "v1beta1"),
        custom=True,
        has_status=True,
    ),
)
_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_ADDRESS = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}


def kind_of(name):
    """Return a kind by its name: `Pod`."""
    return _BY_NAME[name]


def kind_at(group, version, plural):
    """Return a kind by its place in the API; 404 when there is none."""
    try:
        return _BY_ADDRESS[group, version, plural]
    except KeyError:
        message = "the server could not find the requested resource"
        raise ApiError(404, "NotFound", message) from None


def definition_of(kind):
    """Return the CustomResourceDefinition behind a custom kind."""
    return {
        "metadata": {"name": kind.resource},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {"kind": kind.name, "plural": kind.plural, "singular": kind.name.lower()},
            "versions": [{"name": kind.version, "served": True, "storage": True}],
        },
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    }
