import ast
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import polarmask_serving
from polarmask.engines.export import export_program
from polarmask.engines.interface import ENGINES
from polarmask.engines.quantize import calibrate
from polarmask.engines.ranking import EngineRanking
from polarmask.errors import ModelFormatError
from polarmask.inference.model_folder import load_model
from polarmask.inference.predictor import Predictor
from polarmask_serving.__main__ import main
from polarmask_serving.archive.build import build_archive
from polarmask_serving.archive.read import (
    DESCRIPTION,
    HANDLER,
    MANIFEST,
    check_unpacked,
    read_archive,
)
from polarmask_serving.errors import ArchiveError

ROOT = Path(__file__).parents[2]


def test_equal_inputs_give_equal_bytes(random_model, tmp_path):
    first = build_archive(random_model, tmp_path / "first.mar", name="polarmask", version="1")
    copy = shutil.copytree(random_model, tmp_path / "elsewhere")
    for file in copy.iterdir():
        os.utime(file, (10**9, 10**9))
        file.chmod(0o600)
    again = build_archive(copy, tmp_path / "again.mar", name="polarmask", version="1")
    assert again.sha256 == first.sha256
    assert again.path.read_bytes() == first.path.read_bytes()


def test_an_archive_says_what_it_is(archive):
    assert read_archive(archive.path) == archive


def test_packages_keep_their_folders(archive):
    with zipfile.ZipFile(archive.path) as opened:
        names = opened.namelist()
        assert opened.testzip() is None
    assert names == sorted(names)
    expected = {
        "MAR-INF/MANIFEST.json",
        "model-config.yaml",
        "polarmask_handler.py",
        "polarmask/inference/predictor.py",
        "polarmask_serving/answer/wire.py",
        "model/model.json",
        "model/model.safetensors",
    }
    assert expected <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_an_unpacked_archive_runs_its_own_code_without_what_only_other_areas_need(
    archive, picture, tmp_path
):
    """In a process of its own, where the tools of other areas can't be imported."""
    with zipfile.ZipFile(archive.path) as opened:
        opened.extractall(tmp_path / "unpacked")
    np.save(tmp_path / "picture.npy", picture)
    program = textwrap.dedent("""
        import json, sys
        import numpy as np
        for absent in ("jinja2", "matplotlib", "kfp", "dvc", "boto3", "kubernetes", "requests"):
            sys.modules[absent] = None
        sys.path.append("unpacked")
        import polarmask_handler  # first, as in a worker
        import polarmask, polarmask_serving
        from polarmask.inference.predictor import Predictor
        from pathlib import Path
        found = Predictor.load(Path("unpacked/model"), threads=1).predict([np.load("picture.npy")])
        homes = [module.__file__ for module in (polarmask, polarmask_handler, polarmask_serving)]
        print(json.dumps({"homes": homes, "scores": found[0].scores.tolist()}))
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    output = json.loads(ran.stdout)
    assert all(str(tmp_path / "unpacked") in home for home in output["homes"])
    (expected,) = Predictor.load(tmp_path / "unpacked" / "model").predict([picture])
    np.testing.assert_allclose(output["scores"], expected.scores, atol=1e-6)  # same code, float32


def test_the_handler_is_small_and_has_the_one_class_torchserve_allows():
    path = Path(polarmask_serving.__file__).with_name("torchserve") / HANDLER
    source = path.read_text()
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    assert len(classes) == 1
    assert source.count("\n") <= 100


@pytest.mark.parametrize("version", ["", "1/2", "a b", "../1", "-1", "x" * 101])
def test_versions_that_fit_no_url_are_refused(random_model, tmp_path, version):
    with pytest.raises(ArchiveError, match="version"):
        build_archive(random_model, tmp_path / "a.mar", name="polarmask", version=version)
    assert not list(tmp_path.iterdir())


def test_models_of_an_unknown_format_are_refused_by_name(random_model, tmp_path):
    model = shutil.copytree(random_model, tmp_path / "model")
    card = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(card | {"format_version": 99}))
    with pytest.raises(ModelFormatError, match="99"):
        build_archive(model, tmp_path / "a.mar", name="polarmask", version="1")


def test_a_failed_build_leaves_the_old_archive_alone(random_model, tmp_path):
    model = shutil.copytree(random_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    out = tmp_path / "a.mar"
    out.write_bytes(b"old")
    with pytest.raises(ArchiveError, match=r"model\.safetensors"):
        build_archive(model, out, name="polarmask", version="1")
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mar", "model"]


def test_files_that_are_no_archive_of_ours_are_refused(tmp_path):
    foreign = tmp_path / "foreign.mar"
    with zipfile.ZipFile(foreign, "w") as opened:
        model = {"modelName": "a", "modelVersion": "1", "handler": "image_classifier"}
        opened.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
    (tmp_path / "text.mar").write_text("hello")
    with pytest.raises(ArchiveError, match="image_classifier"):
        read_archive(foreign)
    for name in ("text.mar", "absent.mar"):
        with pytest.raises(ArchiveError, match="no model archive"):
            read_archive(tmp_path / name)


@pytest.fixture(scope="module")
def packed(random_model, tmp_path_factory):
    """Return the archive that the command makes, and what it printed."""
    out = tmp_path_factory.mktemp("command") / "model.mar"
    (out.parent / "evaluation.json").write_text('{"split": "val", "mask_ap": 0.5, "large": null}')
    command = ["archive", "--model", str(random_model), "--out", str(out), "--version", "1"]
    command += ["--metrics", str(out.parent / "evaluation.json")]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(command) == 0
    return out, output.getvalue().splitlines()


def described(path):
    with zipfile.ZipFile(path) as opened:
        return json.loads(opened.read(DESCRIPTION))


@pytest.fixture(scope="module")
def report(packed):
    with zipfile.ZipFile(packed[0]) as opened:
        return EngineRanking.from_plain(
            json.loads(opened.read("model/engines.json")), where="the archive"
        )


@pytest.mark.slow
def test_the_command_measures_and_packs(packed, report):
    out, (*table, last) = packed
    assert last == f"{out} sha256:{read_archive(out).sha256}"
    on_cpu = [name for name, kind in ENGINES.items() if kind.device == "cpu"]
    assert [line.split()[0] for line in table[1:]] == on_cpu
    assert {engine.name for engine in report.engines if engine.admitted} == {
        name
        for name in on_cpu
        if ENGINES[name].exact  # without data nothing else can be judged
    }
    assert all(engine.reason for engine in report.engines)
    assert described(out)["engine"] == report.fastest_first[0]
    assert described(out)["metrics"] == {"mask_ap": 0.5}


def with_engine(report, name):
    """Return the report with one engine admitted."""
    chosen = tuple(
        replace(each, admitted=each.name == name, milliseconds=1.0) for each in report.engines
    )
    return replace(report, engines=chosen)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "openvino_int8"])
def test_an_archive_with_an_exported_network_is_equal_for_equal_inputs(
    random_model, png, report, tmp_path, engine
):
    measured = with_engine(report, engine)
    if engine == "openvino_int8":
        program = tmp_path / "network.onnx"
        export_program(load_model(random_model)[0], program)
        image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        batch = Predictor.load(random_model, engine="eager").network_input(image)
        measured = replace(measured, calibration=calibrate(program, [batch]))
    options = {"name": "polarmask", "version": "1", "engines": measured}
    first = build_archive(random_model, tmp_path / "first.mar", **options)
    assert build_archive(random_model, tmp_path / "b.mar", **options).sha256 == first.sha256
    with zipfile.ZipFile(first.path) as opened:
        network = opened.read(f"model/{ENGINES[engine].program}")
        opened.extractall(tmp_path / "unpacked")
    assert str(ROOT).encode() not in network  # nor any other folder of this machine
    assert check_unpacked(tmp_path / "unpacked")["engine"] == engine
    assert Predictor.load(tmp_path / "unpacked" / "model").engine.name == engine


def test_a_report_of_other_weights_is_refused(random_model, tmp_path):
    other = EngineRanking(
        weights_sha256="0" * 64, device="cpu", cpu="any", canvas_hw=(64, 64), images="", engines=()
    )
    with pytest.raises(ArchiveError, match="other weights"):
        build_archive(random_model, tmp_path / "a.mar", name="a", version="1", engines=other)


def test_an_archive_names_where_its_model_comes_from(random_model, tmp_path):
    out = tmp_path / "a.mar"
    build_archive(random_model, out, name="a", version="1", metrics={"mask_ap": 0.5})
    facts = described(out)
    assert facts["data_commit"] == "abc"
    assert facts["metrics"] == {"mask_ap": 0.5}
    assert facts["licence"] == {"code": "Apache-2.0", "model": ""}
    assert [category["name"] for category in facts["categories"]] == ["nucleus", "debris"]
    assert facts["engine"] == "folded"


def test_changed_weights_are_noticed_when_the_archive_is_loaded(archive, tmp_path):
    with zipfile.ZipFile(archive.path) as opened:
        opened.extractall(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ArchiveError, match=r"model\.safetensors is not what was packed"):
        check_unpacked(tmp_path)


def test_an_archive_of_an_unknown_format_is_refused_by_name(archive, tmp_path):
    changed = tmp_path / "a.mar"
    with zipfile.ZipFile(archive.path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == DESCRIPTION:
                text = json.dumps(json.loads(text) | {"format_version": 99})
            new.writestr(name, text)
    with pytest.raises(ArchiveError, match="has format version 99, this code reads 1"):
        read_archive(changed)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (MANIFEST, "[" * 100_000),
        (MANIFEST, "[]"),
        (MANIFEST, '{"model": {"modelName": "a\\nb", "modelVersion": "1", "handler": "%s"}}'),
        (MANIFEST, '{"model": {"modelName": "..", "modelVersion": "1", "handler": "%s"}}'),
        (MANIFEST, '{"model": {"modelName": "a", "modelVersion": "1/2", "handler": "%s"}}'),
        (DESCRIPTION, "[" * 100_000),
        ("bomb", "0" * 10**6),
    ],
    ids=["deep", "list", "name-of-two-lines", "name-of-dots", "version", "deep-inside", "bomb"],
)
def test_a_hostile_archive_is_refused_in_one_line(archive, tmp_path, name, content):
    changed = tmp_path / "a.mar"
    with zipfile.ZipFile(archive.path) as old, zipfile.ZipFile(changed, "w") as new:
        entries = {each: old.read(each) for each in (MANIFEST, DESCRIPTION)}
        entries[name] = content.replace("%s", HANDLER)
        for each, text in entries.items():
            packing = zipfile.ZIP_DEFLATED if each == "bomb" else zipfile.ZIP_STORED
            new.writestr(each, text, packing)
    with pytest.raises(ArchiveError) as refused:
        read_archive(changed)
    assert "\n" not in str(refused.value)


def test_reading_an_archive_needs_no_torch():
    code = "import sys, polarmask_serving.torchserve.pod; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    command = ["archive", "--model", str(tmp_path), "--out", str(tmp_path / "a"), "--version", "1"]
    assert main(command) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert output.count("\n") == 1
