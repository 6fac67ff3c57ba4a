"""Each area's extra brings what the area imports, and nothing unused."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

from polarmask.system.command_line import _MODULES_OF_EXTRA

ROOT = Path(__file__).parents[2]
MODULES = sorted(ROOT.glob("*/polarmask*/**/*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: {re.match(r"[\w-]+", line)[0].lower() for line in lines}
    for name, lines in PROJECT["optional-dependencies"].items()
}
# Serving and components need the model area, too.
EXTRAS_OF = {
    "polarmask": ("model", "labels", "report", "engines", "export", "timm"),
    "polarmask_serving": ("serving", "model"),
    "polarmask_components": ("components", "model"),
    "polarmask_pipelines": ("pipelines",),
}
BROUGHT_FOR_OTHERS = {
    "serving": {"boto3", "botocore"},  # the init container runs a module of the components
    "tensorboard": {"tensorboard"},  # torch.utils.tensorboard imports it
    "pipelines": {"kfp-kubernetes"},  # it installs itself into the package of kfp
}
NO_EXTRA = {"supervision"}  # found.to_supervision() is for those who have it, and says so
DISTRIBUTIONS = packages_distributions()


def modules_in(tree):
    """Return what a syntax tree imports, except for type checking; each as a dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        yield from modules_in(node)


def distributions_of(modules):
    """Return the distributions, in lower case, that bring these modules and are not ours."""
    tops = {module.split(".")[0] for module in modules} - NO_EXTRA
    external = {
        top for top in tops - set(sys.stdlib_module_names) if not top.startswith("polarmask")
    }
    # Several distributions may put files into one package: the one of its name is meant.
    candidates = {top: [name.lower() for name in DISTRIBUTIONS[top]] for top in external}
    return {top if top in names else names[0] for top, names in candidates.items()}


@cache
def imports_of(package):
    paths = [path for path in MODULES if package in path.relative_to(ROOT).parts]
    trees = [ast.parse(path.read_text()) for path in paths]
    return distributions_of({module for tree in trees for module in modules_in(tree)})


def test_an_area_imports_what_its_extras_bring():
    missing = {
        package: imports_of(package) - set().union(*(EXTRAS[extra] for extra in extras))
        for package, extras in EXTRAS_OF.items()
    }
    assert not any(missing.values()), missing


def test_an_extra_brings_only_what_its_areas_import():
    unused = {
        extra: brought - BROUGHT_FOR_OTHERS.get(extra, set()) - imports_of_users(extra)
        for extra, brought in EXTRAS.items()
    }
    assert not any(unused.values()), unused


def test_a_command_knows_which_extra_brings_a_module():
    for extra, modules in _MODULES_OF_EXTRA.items():
        assert distributions_of(modules.split()) <= EXTRAS[extra]
    needed = set().union(*map(imports_of, EXTRAS_OF))
    known = distributions_of(" ".join(_MODULES_OF_EXTRA.values()).split())
    assert needed - known == set()


def test_the_base_installation_brings_what_the_command_needs():
    assert PROJECT["dependencies"] == [f"{PROJECT['name']}[model,labels,report]"]
    # Without these a command names the extra; engines and archives are for servers.
    needed = imports_of("polarmask") - EXTRAS["engines"] - EXTRAS["export"] - EXTRAS["timm"]
    assert needed <= EXTRAS["model"] | EXTRAS["labels"] | EXTRAS["report"]


def test_images_install_extras_that_exist():
    text = (ROOT / "images" / "Dockerfile").read_text().replace("\\\n", " ")
    named = re.findall(r"bin/install-packages ([a-z ]+)", text)
    assert len(named) == 4
    assert set(" ".join(named).split()) <= set(EXTRAS)


def installed_with(line, found):
    """Add what a requirement and its own requirements install here."""
    wanted = Requirement(line)
    if wanted in found:
        return
    found.add(wanted)
    for each in map(Requirement, requires(wanted.name) or ()):
        extras = ("", *wanted.extras)
        if each.marker is None or any(each.marker.evaluate({"extra": name}) for name in extras):
            installed_with(str(each), found)


def test_the_ops_image_holds_no_torch():
    installed = {}
    for extra in ("components", "model"):
        found = set()
        for line in PROJECT["optional-dependencies"][extra]:
            installed_with(line, found)
        installed[extra] = {each.name for each in found}
    assert "torch" in installed["model"]
    assert len(installed["components"]) > 50
    assert not installed["components"] & {"torch", "torchvision", "opencv-python-headless"}


def imports_of_users(extra):
    areas = [package for package, extras in EXTRAS_OF.items() if extra in extras]
    return set().union(*map(imports_of, areas))


def reached_from(module, seen):
    """Return all modules that importing one of ours imports, and those in turn."""
    if module in seen:
        return
    seen.add(module)
    path = next((path for path in MODULES if dotted(path) == module), None)
    if path is not None:
        top = ast.parse(path.read_text())
        top.body = [node for node in top.body if not isinstance(node, ast.FunctionDef)]
        for each in modules_in(top):
            reached_from(each, seen)


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])


def test_a_step_in_the_ops_image_runs_with_the_components_extra_alone():
    """That image has no torch and nothing else of the model area."""
    steps = [path for path in MODULES if "(base_image=OPS_IMAGE" in path.read_text()]
    assert len(steps) > 3
    missing = {path.stem: distributions_reached(path) - EXTRAS["components"] for path in steps}
    assert not any(missing.values()), missing


def distributions_reached(path):
    reached = set()
    for module in modules_in(ast.parse(path.read_text())):
        reached_from(module, reached)
    return distributions_of(reached)
