"""Crops with several processes on several machines: each machine does a piece of work once."""

import json
import subprocess
import sys

import pytest

from factories import make_tiny_coco
from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.labels.precompute import precompute

# Forked after the imports, which take most of the time.
_WORKER = """
import json, os, sys
from pathlib import Path

import numpy as np
from torch import distributed

from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.data import pixel_files
from polarmask.data.coco import load_coco
from polarmask.labels.store import LabelStore
from polarmask.training import dataset
from polarmask.training.dataset import EpochImage, SampleKey

data, labels, out = map(Path, sys.argv[1:])
done = {"regions": 0, "decoded": []}

def counted(name, function):
    def call(*arguments):
        if name == "regions":
            done[name] += 1
        else:
            done[name].append(arguments[0].name)
        return function(*arguments)
    return call

def work(rank):
    machine, local = divmod(rank, 2)
    os.environ |= {"LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", f"file://{out}/meet", rank=rank, world_size=4)
    dataset.regions_of = counted("regions", dataset.regions_of)
    pixel_files.read_image = counted("decoded", pixel_files.read_image)
    config = override(tiny(), ["input.crop=64"])
    images = dataset.TrainingImages(
        load_coco(data, "train"), LabelStore.open(labels), config, pixels=out / str(machine)
    )
    images.copy_pixels()
    decoded = sorted(done["decoded"])
    sources = [EpochImage(0, index) for index in range(len(images))]
    samples = [images[SampleKey(source, images.canvas_hw(source))] for source in sources]
    total = int(sum(sample.image.astype(np.int64).sum() for sample in samples))
    found = {"regions": done["regions"], "decoded": decoded, "total": total, "n": len(images)}
    (out / f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()  # the regions' file goes with the process that made it

children = {}
for rank in range(4):
    pid = os.fork()
    if not pid:
        work(rank)
        os._exit(0)
    children[pid] = rank
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of four processes did, two on each of two machines."""
    folder = tmp_path_factory.mktemp("machines")
    data = make_tiny_coco(folder / "data", images=8, val_images=1, sizes=((200, 240), (48, 60)))
    precompute(data, folder / "labels", override(tiny(), ["input.crop=64"]))
    (folder / "out").mkdir()
    paths = [str(folder / name) for name in ("data", "labels", "out")]
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, *paths], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / "out" / f"{rank}.json").read_text()) for rank in range(4)]


def test_the_first_process_of_a_machine_cuts_regions_for_all(found):
    assert [each["regions"] for each in found] == [1, 0, 1, 0]
    assert {each["n"] for each in found} == {4 * 12 + 4}
    assert len({each["total"] for each in found}) == 1


def test_no_two_processes_of_a_machine_decode_the_same_slide(found):
    for first, second in (found[:2], found[2:]):
        assert len({*first["decoded"], *second["decoded"]}) == 4
        assert len(first["decoded"]) == len(second["decoded"]) == 2
