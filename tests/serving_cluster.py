"""A cluster that runs the shipped Deployment of TorchServe, with what deploys to it."""

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
import torch
import yaml

from factories import make_tiny_coco
from kube.deployments import DeploymentController
from kube.kubelet import Kubelet
from kube.server import KubeServer
from kube.services import ServiceProxy
from manifest_rules import name_of, render
from polarmask.config.presets import tiny
from polarmask.config.settings import LabelConfig
from polarmask.data.coco import Category
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.network.detector import PolarMask
from polarmask_components.deploy import cluster_deployment
from polarmask_components.deploy.ask_server import ask
from polarmask_components.deploy.deploy import deploy
from polarmask_components.deploy.register_model import register_model
from polarmask_components.deploy.trial import run as trial_run
from polarmask_components.registry.registry import open_registry

ROOT = Path(__file__).parents[1]
STAND_IN = Path(__file__).with_name("stand_in_server.py")
OVERLAY = ROOT / "k8s" / "overlays" / "kind"
NAMESPACE = "polarmask"
TARGET = f"kubernetes://{NAMESPACE}/polarmask"


def shipped(path):
    """Return the objects of a manifest in k8s/base."""
    return list(yaml.safe_load_all((ROOT / "k8s" / "base" / path).read_text()))


class ServingCluster:
    """The shipped serving manifests in the tests' cluster, with the rights of the shipped Role.

    Args:
        s3: Environment that leads to object storage.
        image: PNG that candidates are asked about.
        stand_in: Serve with `stand_in_server` in the place of TorchServe.
        token: That the proxies ask for; None: they ask for none.
        tls: Entries of the Secret that makes the proxies speak it; None: plain HTTP.
        trial: With k8s/components/trial, rendered by kubectl.
    """

    def __init__(self, s3, image, *, stand_in=True, token=None, trial=False, tls=None):
        (role, _) = shipped("pipeline/role.yaml")
        rules = role["rules"]
        self._rendered = {name_of(each): each for each in render(OVERLAY)} if trial else {}
        if trial:
            rules = rules + self._rendered["Role/polarmask-trial"]["rules"]
        self.server = KubeServer({"polarmask-pipeline": rules}, namespace=NAMESPACE)
        self.image = image
        self._s3 = s3
        self._stand_in = stand_in
        self._token = token
        self._tls = tls
        self._stack = ExitStack()
        self.registry = open_registry(f"s3://polarmask/{uuid4().hex}/registry")

    def __enter__(self):
        enter = self._stack.enter_context
        self._folder = enter(TemporaryDirectory())
        enter(self.server)
        secret = {"metadata": {"name": "polarmask-model-store"}, "stringData": dict(self._s3)}
        self.server.create("Secret", secret)
        if self._token is not None:
            tokens = {"metadata": {"name": "polarmask-tokens"}}
            self.server.create("Secret", tokens | {"stringData": {"tokens": self._token}})
        if self._tls is not None:
            secret = {"metadata": {"name": "polarmask-tls"}, "stringData": self._tls}
            self.server.create("Secret", secret)
        self.server.create("ServiceAccount", *shipped("serving/service-account.yaml"))
        self.kubelet = enter(Kubelet(self.server))
        enter(DeploymentController(self.server))
        enter(ServiceProxy(self.server, lag=0.2))
        self._make_service(shipped("serving/service.yaml")[0])
        if self._rendered:
            self._make_service(self._rendered["Service/polarmask-candidate"])
            self.server.create("ConfigMap", self._rendered["ConfigMap/polarmask-traffic"])
            self.server.create(
                "Deployment", self._eased(self._rendered["Deployment/polarmask-candidate"])
            )
            stable = self._rendered["Deployment/polarmask"]
            proxy = stable["spec"]["template"]["spec"]["containers"][1]
            for each in proxy["env"]:
                if each["name"] == "CANDIDATE":
                    each["value"] = f"{self.address('polarmask-candidate')}:8080"
        else:
            (stable,) = shipped("serving/server/deployment.yaml")
        self.server.create("Deployment", self._eased(stable))
        return self

    def _make_service(self, service):
        service["spec"]["ports"][0]["port"] = 8080  # below 1024 needs rights
        self.server.create("Service", service)
        self.server.wait_for(lambda: self.address(service["metadata"]["name"]))

    def address(self, service):
        """Return the address of a Service, or nothing."""
        return self.server.get("Service", service)["spec"].get("clusterIP")

    def __exit__(self, *exception):
        self._stack.__exit__(*exception)

    def _eased(self, deployment):
        """Return a shipped Deployment without a pod, and with shorter deadlines."""
        spec = deployment["spec"]
        spec |= {"replicas": 0, "minReadySeconds": 0, "progressDeadlineSeconds": 180}
        serve, proxy = spec["template"]["spec"]["containers"]
        serve["resources"]["limits"]["cpu"] = "1"
        proxy["startupProbe"]["periodSeconds"] = proxy["readinessProbe"]["periodSeconds"] = 1
        proxy["lifecycle"]["preStop"]["exec"]["command"].append("--forget-seconds=1")
        if self._stand_in:
            spec["progressDeadlineSeconds"] = 6
            serve["command"][:3] = [sys.executable, str(STAND_IN)]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                del serve[probe]  # the proxy's asks it, too
        return deployment

    def lead_here(self, patch):
        """Give this process the rights of the pipeline in this cluster, and short pauses."""
        path = Path(self._folder) / "kubeconfig"
        self.server.write_kubeconfig(path, "polarmask-pipeline")
        patch.setenv("KUBECONFIG", str(path))
        patch.setattr(cluster_deployment, "_POLL_SECONDS", 0.1)
        patch.setattr(trial_run, "_POLL_SECONDS", 0.5)

    def service(self):
        return self.server.get("Service", "polarmask")

    def deployment(self):
        return self.server.get("Deployment", "polarmask")

    def change(self, alter):
        """Let `alter` change the Deployment in place, as an administrator would."""
        self.server.update("Deployment", "polarmask", alter)

    def scale(self, replicas):
        """Have so many pods and wait for them."""
        self.change(lambda deployment: deployment["spec"].update(replicas=replicas))
        self.server.wait_for(
            lambda: self.deployment()["status"].get("availableReplicas") == replicas, 120
        )

    def pods(self):
        """Return the names of pods that are not on their way out."""
        pods = self.server.list("Pod")
        return [p["metadata"]["name"] for p in pods if "deletionTimestamp" not in p["metadata"]]

    def process_ids(self):
        """Return the ids of all processes in pods."""
        names = [pod["metadata"]["name"] for pod in self.server.list("Pod")]
        return [pid for name in names for pid in self.kubelet.process_ids(name)]

    @property
    def url(self):
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self.service()['spec']['clusterIP']}:8080/predictions/polarmask"

    def answering(self):
        """Return the version that answers through the Service."""
        return ask(self.url, self.image, token=self._token)["model"]["version"]

    def deploy(self, model, *, expected="the champion", trial=None):
        """Deploy a model, a folder or a record, as the step does."""
        champion = self.registry.champion_version()
        return deploy(
            lambda: self.register(model) if isinstance(model, Path) else model,
            TARGET,
            name="polarmask",
            registry=self.registry,
            expected=champion if expected == "the champion" else expected,
            image=self.image,
            trial=trial or {},
        )

    def register(self, model):
        """Register a model folder."""
        return register_model(
            model, name="polarmask", metrics={"mask_ap": 0.5}, registry=self.registry
        )


def make_model(folder, *, seed=0, **provenance):
    """Write a small model with random weights; its card carries what the stand-in shall do."""
    torch.manual_seed(seed)
    network = replace(tiny().model, num_classes=1, channels=32, tower_depth=1, strides=(8, 16))
    labels = LabelConfig(level_ranges=((0, 32), (32, float("inf"))))
    small = replace(tiny().input, short_side=32)
    config = replace(tiny(), model=network, input=small, labels=labels)
    facts = {"data_commit": "c0ffee", "data_hash": "a.dir", "code_version": "v1", "seed": str(seed)}
    card = ModelCard(config, (Category(1, "cell"),), facts | provenance)
    save_model(folder, PolarMask(config.model), card)
    return folder


@contextmanager
def cluster_of_one_image(s3, folder, **settings):
    """Start a ServingCluster that asks candidates about a drawn image; lead this process to it."""
    data = make_tiny_coco(folder / "data", images=1, val_images=1)
    image = (data / "images" / "val_000.png").read_bytes()
    token = settings.get("token")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.items():
            patch.setenv(name, value)
        if token is not None:
            patch.setenv("POLARMASK_TOKEN", token)
        with ServingCluster(s3, image, **settings) as cluster:
            cluster.lead_here(patch)
            yield cluster
