import time
from dataclasses import replace

import psutil
import pytest

from polarmask_serving.archive.build import build_archive
from polarmask_serving.errors import RegistrationError, ServerError
from polarmask_serving.torchserve.roll_out import check_answer, roll_out

FINE_START = "def initialize(self, context): pass\n"
BROKEN = {
    "does-not-load": (
        "def initialize(self, context): raise RuntimeError('weights are missing')\n"
        "def handle(self, rows, context): pass",
        "RuntimeError: weights are missing",
    ),
    "answers-no-json": (
        FINE_START + "def handle(self, rows, context): return [b'garbage'] * len(rows)",
        "JSONDecodeError",
    ),
    "answers-too-late": (
        "def initialize(self, context):\n    import time\n    self.sleep = time.sleep\n"
        "def handle(self, rows, context): self.sleep(30)",
        "500",
    ),
}


@pytest.mark.parametrize(("handler", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_version_that_fails_leaves_the_old_one_answering(
    server, archive_of_handler, png, handler, reason
):
    champion = server.champion
    broken = archive_of_handler(handler, version="bad")
    outcome = roll_out(server, broken, image=png)
    assert not outcome.promoted
    assert reason in outcome.reason
    assert (outcome.version, outcome.previous) == ("bad", champion)
    assert_only(server, champion, png)


FOUND = {
    "category_id": 3,
    "category": "nucleus",
    "score": 0.5,
    "bbox": [1, 2, 3, 4],
    "polygon": [[1, 2], [4, 2], [4, 6]],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"model": {"name": "polarmask", "version": "0"}}, "not from", id="version"),
        pytest.param({"model": None}, "not from", id="no-model"),
        pytest.param({"instances": None}, "no instances", id="no-instances"),
        pytest.param({"instances": [5]}, "fields", id="number"),
        pytest.param({"instances": [FOUND | {"mask": 1}]}, "fields", id="strange-field"),
        pytest.param({"instances": [FOUND | {"score": 1.5}]}, "out of range", id="score"),
        pytest.param({"instances": [FOUND | {"score": "high"}]}, "out of range", id="no-score"),
        pytest.param({"instances": [FOUND | {"bbox": [1, 2]}]}, "out of range", id="bbox"),
    ],
)
def test_answers_of_another_form_or_version_are_refused(change, reason):
    good = {"model": {"name": "polarmask", "version": "1"}, "instances": [FOUND]}
    check_answer(good, "polarmask", "1")
    check_answer(
        good | {"instances": [FOUND | {"polygons": [FOUND["polygon"]] * 2}]}, "polarmask", "1"
    )
    with pytest.raises(ServerError, match=reason):
        check_answer(good | change, "polarmask", "1")


def test_a_version_that_does_not_load_in_time_leaves_the_old_one_answering(
    server, archive_of_handler, png
):
    champion = server.champion
    handler = (
        "def initialize(self, context):\n    import time\n    time.sleep(60)\n"
        "def handle(self, rows, context): pass"
    )
    slow = archive_of_handler(handler, version="slow")
    outcome = roll_out(server, slow, image=png, time_out=3)
    assert not outcome.promoted
    assert "timed out" in outcome.reason
    assert_only(server, champion, png)


def test_a_registry_that_refuses_leaves_the_old_version_answering(server, archive_of_handler, png):
    champion = server.champion
    handler = (
        "def initialize(self, context): pass\n"
        "def handle(self, rows, context): return"
        " [{'model': {'name': 'polarmask', 'version': 'new'}, 'instances': []}] * len(rows)"
    )

    def refuse():
        assert server.predict(png)["model"]["version"] == champion
        raise PermissionError("another run promoted meanwhile")

    with pytest.raises(PermissionError):
        roll_out(server, archive_of_handler(handler, version="new"), image=png, confirm=refuse)
    assert_only(server, champion, png)


def test_an_archive_that_changed_since_it_was_built_is_refused(server, archive, png):
    champion = server.champion
    outcome = roll_out(server, replace(archive, version="other", sha256="0" * 64), image=png)
    assert not outcome.promoted
    assert "changed" in outcome.reason
    assert_only(server, champion, png)


def test_other_models_and_taken_versions_are_refused(server, archive):
    with pytest.raises(RegistrationError, match="is cellpose, not polarmask"):
        server.register(replace(archive, name="cellpose"))
    with pytest.raises(RegistrationError, match="served already"):
        server.register(replace(archive, version=server.champion))


def test_a_version_that_answers_becomes_the_only_one(server, random_model, png, tmp_path):
    champion = server.champion
    new = build_archive(random_model, tmp_path / "n.mar", name="polarmask", version=champion + ".1")
    outcome = roll_out(server, new, image=png)
    assert outcome.promoted, outcome.reason
    assert (outcome.version, outcome.previous) == (new.version, champion)
    assert outcome.answer["instances"]
    assert_only(server, new.version, png)

    again = roll_out(server, new, image=png)
    assert again.promoted  # a step that is repeated after its success succeeds
    assert_only(server, new.version, png)


def assert_only(server, version, png):
    """Nothing but this version is registered, stored, recorded, holds memory, or answers."""
    assert server.champion == version
    assert server.client.versions() == (version,)
    assert server.client.is_ready(version)
    assert server.predict(png)["model"]["version"] == version
    stored = [path.name for path in (server.folder / "store").iterdir()]
    assert stored == [f"polarmask-{version}.mar"]
    deadline = time.monotonic() + 20
    while len(workers := psutil.Process(server.pid).children()) > 1:
        assert time.monotonic() < deadline, [worker.cmdline() for worker in workers]
        time.sleep(0.1)
