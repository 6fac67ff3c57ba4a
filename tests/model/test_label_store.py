import json
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import make_tiny_coco
from polarmask.data.coco import Annotation, ImageRecord, load_coco
from polarmask.data.labels import ImageLabels
from polarmask.errors import LabelStoreError
from polarmask.geometry.outlines import read_outline
from polarmask.labels.image_labels import label_image, label_images
from polarmask.labels.precompute import EveryNth, Workers, data_hash, precompute, precompute_shards
from polarmask.labels.store import LabelStore, decode_lengths, encode_lengths, write_shard


@given(st.floats(1e-3, 6_000))
def test_stored_lengths_are_within_an_eighth_of_a_thousandth(length):
    stored = decode_lengths(encode_lengths(np.array([length], dtype=np.float32)))[0]
    assert stored == pytest.approx(length, rel=1.25e-4)


def test_what_is_read_is_what_was_labelled(drawn_data, drawn_labels, small_config):
    store = LabelStore.open(drawn_labels, verify=True)
    for record in load_coco(drawn_data, "val").images:
        expected = label_image(record, small_config)
        read = store.read("val", record.id)
        assert read.canvas_hw == expected.canvas_hw
        for name, value in vars(expected).items():
            if isinstance(value, np.ndarray):
                # iou is stored in 16 bits, lengths as 16-bit logarithms.
                np.testing.assert_allclose(getattr(read, name), value, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("count", [65_536, 70_001])
def test_an_image_may_have_more_objects_than_16_bits_number(tmp_path, count):
    labels = ImageLabels(
        image_id=1,
        canvas_hw=(64, 64),
        location_P3=np.zeros((count, 3), dtype=np.int64),
        object_P=np.arange(count),
        ray_PR=np.ones((count, 4), dtype=np.float32),
        category_G=np.arange(count),
        box_G4=np.zeros((count, 4), dtype=np.float32),
        annotation_G=np.arange(count),
        iou_G=np.ones(count, dtype=np.float32),
        ignored_I3=np.zeros((0, 3), dtype=np.int64),
    )
    write_shard(tmp_path / "train-00000.safetensors", [labels], "key", {})
    shard = {"file": "train-00000.safetensors", "images": [1]}
    read = LabelStore(tmp_path, {"splits": {"train": {"shards": [shard]}}}).read("train", 1)
    assert (read.object_P == labels.object_P).all()
    assert (read.category_G == labels.category_G).all()


def test_the_summary_counts_what_is_there(drawn_data, drawn_labels):
    coco = load_coco(drawn_data, "train")
    summary = LabelStore.open(drawn_labels).summary("train")
    assert summary.images == len(coco.images)
    assert summary.instances == sum(len(record.annotations) for record in coco.images)
    assert summary.without_positive == 0
    # Ellipses are star-convex, crescents are not: rays fit them worse.
    assert summary.per_category_iou["ellipse"] > 0.95
    assert summary.per_category_iou["crescent"] < summary.per_category_iou["ellipse"]
    assert [iou for _, _, iou in summary.worst] == sorted(iou for _, _, iou in summary.worst)


def test_an_outline_that_crosses_itself_is_learned_like_its_mask(small_config):
    """A bow-tie encloses nothing where areas of both signs are summed."""
    hw = (96, 128)
    bow_tie = [20, 20, 90, 90, 90, 20, 20, 90]
    outline = read_outline({"segmentation": [bow_tie]}, hw, crowd=False)
    box, area = outline.bbox, outline.area
    found = Annotation(7, 0, outline.parts, box, area, False, outline.segmentation)
    labels = label_image(ImageRecord(1, "a.png", hw[1], hw[0], (found,)), small_config)
    assert len(labels.object_P) > 0
    assert labels.iou_G[0] > 0.8


def test_categories_of_one_name_are_summed_apart(small_config, tmp_path):
    """Crescents fit worse than ellipses, also when both are called cell."""
    data = make_tiny_coco(tmp_path / "data")
    path = data / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    for category in document["categories"]:
        category["name"] = "star" if category["id"] == 5 else "cell"
    path.write_text(json.dumps(document))
    summary = precompute(data, tmp_path / "out", small_config, splits=("train",)).summary("train")
    iou = summary.per_category_iou
    assert set(iou) == {"cell (2)", "star", "cell (9)"}
    assert iou["cell (9)"] < 0.95 < iou["cell (2)"]
    assert sum(summary.per_category_instances.values()) == summary.instances
    assert min(iou.values()) < summary.mean_iou < max(iou.values())


def test_a_second_run_remakes_nothing(drawn_data, small_config, tmp_path):
    precompute(drawn_data, tmp_path, small_config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    precompute(drawn_data, tmp_path, small_config)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == before


def test_other_settings_remake_the_labels(drawn_data, small_config, tmp_path):
    precompute(drawn_data, tmp_path, small_config)
    fewer = replace(small_config, model=replace(small_config.model, num_rays=24))
    store = precompute(drawn_data, tmp_path, fewer)
    image_id = store.image_ids("train")[0]
    assert store.read("train", image_id).ray_PR.shape[1] == 24


def _precompute_and_die(data, out, config):
    """Kill this process hard while the second shard is being written."""
    from polarmask.labels import precompute as module

    original = module.write_shard

    def write_then_die(path, *rest):
        if path.name.endswith("00001.safetensors"):
            (path.parent / f".{path.name}.1.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, *rest)

    module.write_shard = write_then_die
    module.precompute(data, out, config, splits=("train",))


def test_a_killed_run_goes_on_with_the_next_shard(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr("polarmask.labels.precompute.SHARD_IMAGES", 3)
    data, out = make_tiny_coco(tmp_path / "data", images=8), tmp_path / "labels"
    context = multiprocessing.get_context("fork")  # the child must see the patched shard size
    process = context.Process(target=_precompute_and_die, args=(data, out, small_config))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(LabelStoreError, match="no finished label store"):
        LabelStore.open(out)
    first = (out / "train-00000.safetensors").stat().st_mtime_ns
    store = precompute(data, out, small_config, splits=("train",))
    assert (out / "train-00000.safetensors").stat().st_mtime_ns == first
    assert len(store.image_ids("train")) == 8


def test_several_processes_make_the_same_store(drawn_data, drawn_labels, small_config, tmp_path):
    precompute(drawn_data, tmp_path, small_config, workers=Workers(processes=2))
    shards = list(drawn_labels.glob("*.safetensors"))
    assert shards
    for path in shards:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_changed_data_is_noticed(drawn_data, drawn_labels, small_config):
    store = LabelStore.open(drawn_labels)
    store.require(small_config, {"train": data_hash(drawn_data, "train")})
    with pytest.raises(LabelStoreError, match="other train annotations"):
        store.require(small_config, {"train": "0" * 64})


def test_a_damaged_shard_is_named(drawn_data, small_config, tmp_path):
    precompute(drawn_data, tmp_path, small_config)
    shard = tmp_path / "val-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(LabelStoreError, match=r"val-00000\.safetensors is missing or damaged"):
        LabelStore.open(tmp_path, verify=True)


def test_an_unknown_format_version_is_refused_by_name(drawn_data, small_config, tmp_path):
    precompute(drawn_data, tmp_path, small_config)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "format_version": 99}))
    with pytest.raises(LabelStoreError, match="format version 99"):
        LabelStore.open(tmp_path)


def test_crowd_regions_and_specks_are_neither_object_nor_background(small_config, tmp_path):
    data = make_tiny_coco(tmp_path, images=1)
    path = data / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    image = document["images"][0]
    height, width = image["height"], image["width"]
    # Uncompressed RLE runs column by column: the right half of the image is a crowd.
    half = height * (width // 2)
    crowd = {"size": [height, width], "counts": [half, height * width - half]}
    speck = [[4.1, 4.1, 5.9, 4.1, 5.9, 5.9, 4.1, 5.9]]
    category = document["categories"][0]["id"]
    for number, (segmentation, is_crowd) in enumerate([(crowd, 1), (speck, 0)]):
        document["annotations"].append(
            {
                "id": 9000 + number,
                "image_id": image["id"],
                "category_id": category,
                "segmentation": segmentation,
                "iscrowd": is_crowd,
                "area": 1,
                "bbox": [4, 4, 1.5, 1.5],
            }
        )
    path.write_text(json.dumps(document))
    labels = label_image(load_coco(data, "train").images[0], small_config)
    assert 9000 not in labels.annotation_G
    assert 9001 not in labels.annotation_G
    ignored = {tuple(location) for location in labels.ignored_I3.tolist()}
    positive = {tuple(location) for location in labels.location_P3.tolist()}
    assert (0, 2, 2) in ignored  # its centre (5, 5) lies in the speck
    right = {
        (0, row, column) for row in range(height // 2) for column in range(width // 4, width // 2)
    }
    assert right <= ignored | positive
    assert not ignored & positive


def test_machines_make_shares_and_one_gathers_them_from_their_folders(
    small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("polarmask.labels.precompute.SHARD_IMAGES", 3)
    data = make_tiny_coco(tmp_path / "data", images=8)
    alone = precompute(data, tmp_path / "alone", small_config, splits=("train",))
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders, start=1):
        precompute_shards(data, folder, small_config, EveryNth(number, 2), splits=("train",))
    assert [len(list(folder.glob("*.safetensors"))) for folder in folders] == [2, 1]
    monkeypatch.setattr("polarmask.labels.precompute._write", None)  # nothing is made again
    out = tmp_path / "out"
    together = precompute(data, out, small_config, splits=("train",), made=folders)
    assert together.summary("train") == alone.summary("train")
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_an_image_that_is_truncated_later_is_found_and_then_left_out(small_config, tmp_path):
    data = make_tiny_coco(tmp_path / "data", images=8)
    precompute(data, tmp_path / "out", small_config, splits=("train",))
    image = sorted((data / "images").iterdir())[0]
    image.write_bytes(image.read_bytes()[:-200])
    store = precompute(data, tmp_path / "out", small_config, splits=("train",))
    assert len(store.image_ids("train")) == 7
    assert [problem.kind for problem in store.data("train").problems] == ["undecodable_image"]


def test_a_batch_of_images_on_a_device_gives_the_same_labels(drawn_data, small_config):
    records = load_coco(drawn_data, "train").images
    ours = label_images(records, small_config)
    there = label_images(records, small_config, "cpu")
    for one, other in zip(ours, there, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_allclose(value, getattr(other, name), atol=1e-3, err_msg=name)
