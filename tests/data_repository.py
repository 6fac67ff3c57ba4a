"""A small git checkout with DVC-versioned COCO data, for tests of steps and pipeline."""

import subprocess
import warnings

from dvc.repo import Repo

from factories import make_tiny_coco


def make_data_repository(folder):
    """Make and return a checkout whose data.dvc names drawn data; its DVC remote lies inside.

    Commits, oldest first, by tag: `empty` (no data), `v1`, `readme` (data as v1), `v2`.
    """
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "README.md").write_text("before\n")
    commit(folder, "empty")
    Repo.init(str(folder)).close()
    (folder / ".dvc" / "config").write_text(DVC_CONFIG)
    with Repo(str(folder)) as repo:
        make_tiny_coco(folder / "data")
        add_data(repo, folder, "v1")
        (folder / "README.md").write_text("after\n")
        commit(folder, "readme")
        make_tiny_coco(folder / "data", seed=1)
        add_data(repo, folder, "v2")
    return folder


DVC_CONFIG = """\
[core]
    remote = bundled
    analytics = false
['remote "bundled"']
    url = bundled
"""


def add_data(repo, folder, tag):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DVC's own, from its dependencies
        repo.add(str(folder / "data"))
        repo.push()
    commit(folder, tag)


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder, tag):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", tag)
    git(folder, "tag", tag)
