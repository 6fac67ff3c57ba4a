"""What is left out of data stands in every result, and may be refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from factories import make_tiny_coco, perfect_predictions
from polarmask.cli import commands, main
from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.data.coco import Category, load_coco
from polarmask.data.images import read_image
from polarmask.data.match_categories import match_categories
from polarmask.data.summary import Problem, SplitSummary
from polarmask.errors import DataError
from polarmask.evaluation.evaluate import evaluate_split
from polarmask.evaluation.inspect_data import inspect_data
from polarmask.inference.model_folder import read_card

SMALL = (
    "model.channels=32 model.tower_depth=1 optim.epochs=0.25 optim.batch_size=4 validate_epochs=1"
)
FLAGS = ["--preset", "tiny", *(flag for setting in SMALL.split() for flag in ("--set", setting))]
LEFT_OUT = "missing_image: 1 image left out - image "


def edit(folder, split, change):
    path = folder / "annotations" / f"instances_{split}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Data without the first image of each split, and with a crowd region in the others."""
    folder = make_tiny_coco(tmp_path_factory.mktemp("damaged"), images=6, val_images=3)
    for split in ("train", "val"):
        (folder / "images" / f"{split}_000.png").unlink()
        edit(folder, split, lambda document: document["annotations"][-1].update(iscrowd=1))
    return folder


@pytest.fixture(scope="module")
def run_folder(damaged, tmp_path_factory):
    out = tmp_path_factory.mktemp("left-out") / "run"
    assert main(["train", *FLAGS, "--data", str(damaged), "--out", str(out)]) == 0
    return out


def arguments(command, data, run, out):
    """Return a command line that reads data, and the files that hold its results."""
    model = ["--model", str(run / "model")]
    return {
        "inspect": ([str(data), "--preset", "tiny", "--out", str(out)], ["inspection.html"]),
        "precompute": (
            ["--preset", "tiny", "--data", str(data), "--out", str(out)],
            ["index.json"],
        ),
        "train": ([*FLAGS, "--data", str(data), "--out", str(out)], ["labels/index.json"]),
        "evaluate": (
            [*model, "--data", str(data), "--out", str(out)],
            ["evaluation.json", "evaluation.html"],
        ),
    }[command]


READS_DATA = ("inspect", "precompute", "train", "evaluate")
READS_NO_ANNOTATIONS = {
    *("import", "import-original", "predict", "presets", "settings", "visualize")
}


def test_each_command_is_known_to_read_data_or_not():
    assert set(commands()) == {*READS_DATA, *READS_NO_ANNOTATIONS}


@pytest.mark.parametrize("command", READS_DATA)
def test_each_result_says_what_was_left_out(command, damaged, run_folder, tmp_path, capsys):
    flags, files = arguments(command, damaged, run_folder, tmp_path)
    assert main([command, *flags]) == 0
    split = "val" if command == "evaluate" else "train"
    used, listed = (2, 3) if split == "val" else (5, 6)
    printed = capsys.readouterr().out
    assert f"{split}: {used} of {listed} images, " in printed
    assert "1 crowd region among them" in printed
    assert LEFT_OUT in printed
    assert "objects left out with their images" in printed
    for name in files:
        text = (tmp_path / name).read_text()
        assert "missing_image" in text, name
        assert f"{split}_000.png" in text, name


@pytest.mark.parametrize("command", READS_DATA)
def test_strict_refuses_data_of_which_something_is_left_out(
    command, damaged, run_folder, tmp_path, capsys
):
    flags, _ = arguments(command, damaged, run_folder, tmp_path / "out")
    assert main([command, "--strict", *flags]) == 2
    error = capsys.readouterr().err
    assert "images and " in error
    assert "objects are left out, more than --strict allows" in error
    assert LEFT_OUT in error


def test_the_model_keeps_how_much_was_left_out(run_folder):
    training = read_card(run_folder / "model").training
    assert (training["images"], training["left_out_images"]) == (5, 1)
    assert training["left_out_objects"] > 0


def test_strict_accepts_whole_data(drawn_data, tmp_path):
    flags = ["--strict", "--preset", "tiny", "--data", str(drawn_data), "--out", str(tmp_path)]
    assert main(["precompute", *flags]) == 0


SUMMARY = SplitSummary(
    split="val", listed_images=10, listed_objects=100, images=9, objects=90, crowds=2
)


def test_a_summary_counts_objects_of_left_out_images_by_themselves():
    problems = [
        Problem("image", "missing_image", "image 4 (d.png)", "no such file"),
        Problem("object", "zero_area", "annotation 7", "flat"),
        Problem("object", "box_clipped", "annotation 9", "over the edge", kept=True),
    ]
    assert SUMMARY.plus(problems).describe().splitlines() == [
        "val: 9 of 10 images, 92 of 100 objects, 2 crowd regions among them",
        "  missing_image: 1 image left out - image 4 (d.png): no such file",
        "  zero_area: 1 object left out - annotation 7: flat",
        "  box_clipped: 1 object kept - annotation 9: over the edge",
        "  7 objects left out with their images",
    ]


def test_problems_found_later_count_with_those_of_their_kind():
    twice = SUMMARY.plus([Problem("image", "gone", "image 1", "a")] * 2)
    [count] = twice.plus([Problem("image", "gone", "image 2", "b")] * 2).problems
    assert count.count == 4
    assert count.examples == ("image 1: a", "image 1: a", "image 2: b")


def test_a_summary_survives_json():
    summary = SUMMARY.plus([Problem("image", "gone", "image 1", "a")])
    plain = json.loads(json.dumps(summary.to_json()))
    assert plain["left_out"] == {"images": 1, "objects": 8}
    assert SplitSummary.from_json(plain) == summary


@pytest.mark.parametrize(("allowed", "passes"), [(0.1, True), (0.09, False), (0, False)])
def test_the_larger_share_of_images_and_objects_decides(allowed, passes):
    if passes:
        SUMMARY.check(allowed, setting="x")
        return
    with pytest.raises(DataError, match=r"1 of 10 images and 8 of 100 objects .* than x allows"):
        SUMMARY.check(allowed, setting="x")


def test_an_all_crowd_split_names_iscrowd(tmp_path):
    data = make_tiny_coco(tmp_path, images=2, val_images=1)
    edit(data, "train", lambda document: [a.update(iscrowd=1) for a in document["annotations"]])
    with pytest.raises(DataError, match=r"no usable object is left; all \d+ are crowds: .*iscrowd"):
        load_coco(data, "train")


def normalise(document):
    sizes = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    for annotation in document["annotations"]:
        size = sizes[annotation["image_id"]]
        annotation["bbox"] = None
        annotation["segmentation"] = [
            [value / size[at % 2] for at, value in enumerate(part)]
            for part in annotation["segmentation"]
        ]


@pytest.mark.parametrize("command", READS_DATA)
def test_normalised_coordinates_are_refused(command, run_folder, tmp_path, capsys):
    data = make_tiny_coco(tmp_path / "data", images=2, val_images=1)
    for split in ("train", "val"):
        edit(data, split, normalise)
    flags, _ = arguments(command, data, run_folder, tmp_path / "out")
    assert main([command, *flags]) == 2
    assert "all coordinates lie between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["precompute", "train"])
def test_data_of_which_nothing_can_be_learned_is_refused(command, drawn_data, tmp_path, capsys):
    flags = ["--preset", "tiny", "--data", str(drawn_data), "--out", str(tmp_path)]
    assert main([command, *flags, "--set", "labels.min_area=1e9"]) == 2
    assert "nothing can be learned: all objects are too small" in capsys.readouterr().err


def numbered(document, ids):
    for entry in document["categories"]:
        entry["id"] = ids[entry["id"]]
    for annotation in document["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]


@pytest.mark.parametrize("command", ["precompute", "train", "evaluate"])
def test_a_val_split_of_other_categories_is_refused_before_work_starts(
    command, run_folder, tmp_path, capsys
):
    data = make_tiny_coco(tmp_path / "data", images=2, val_images=2)
    edit(data, "val", lambda document: numbered(document, {2: 5, 5: 2, 9: 9}))
    flags, _ = arguments(command, data, run_folder, tmp_path / "out")
    assert main([command, *flags]) == 2
    known_by = "the model" if command == "evaluate" else "the train split"
    assert f"category 2 is 'star', for {known_by} it is 'ellipse'" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


CAT, DOG, COW = Category(1, "cat"), Category(2, "dog"), Category(3, "cow")


def split_of(drawn, *categories, counts=None):
    counts = counts or (1,) * len(categories)
    return replace(drawn, categories=categories, object_counts=counts)


@pytest.mark.parametrize(
    ("known", "here", "counts", "message"),
    [
        ((CAT, DOG), (Category(1, "dog"), Category(2, "cat")), None, "category 1 is 'dog', for"),
        ((CAT,), (Category(7, "cat"),), None, "'cat' is category 7, for the model it is 1"),
        ((CAT, DOG), (CAT, Category(3, "dog")), None, "'dog' is category 3"),
        ((CAT,), (DOG, COW), None, "shares no category with the model, which has cat"),
        ((CAT,), (CAT, DOG), (0, 4), r"no object has a category of the model .*others \(dog\)"),
    ],
    ids=["swapped", "other-id", "one-other-id", "disjoint", "listed-and-not-used"],
)
def test_categories_that_contradict_each_other_are_refused(
    drawn_data, known, here, counts, message
):
    data = split_of(load_coco(drawn_data, "val"), *here, counts=counts)
    with pytest.raises(DataError, match=message):
        match_categories(known, data, known_by="the model")


def test_categories_that_one_side_lacks_are_noted(drawn_data):
    data = split_of(load_coco(drawn_data, "val"), CAT, DOG, counts=(3, 4))
    absent, unknown = match_categories((CAT, COW), data, known_by="the model").summary.problems
    assert (unknown.kind, unknown.kept) == ("category_unknown", True)
    assert "its 4 objects can't be found" in unknown.examples[0]
    assert (absent.kind, absent.examples[0][:16]) == ("category_not_in_split", "category 3 (cow)")


LIMITED = override(tiny(), ["postprocess.max_instances=1"])


def test_the_upper_bound_respects_the_limit_of_instances_and_says_so(drawn_data):
    data = load_coco(drawn_data, "train")
    whole, cut = inspect_data(data, tiny()), inspect_data(data, LIMITED)
    assert cut.evaluation.mask_ar < whole.evaluation.mask_ar
    assert cut.bounds[0].mask_ap < whole.bounds[0].mask_ap
    [note] = [each for each in cut.data.problems if each.kind == "results_cut"]
    assert note.count == sum(len(image.annotations) > 1 for image in data.images)
    assert "raise postprocess.max_instances" in note.examples[0]
    assert not any(each.kind == "results_cut" for each in whole.data.problems)


def test_an_evaluation_says_where_results_were_cut(drawn_data):
    data = load_coco(drawn_data, "val")
    perfect = perfect_predictions(data)
    found = {key: replace(each.select([0]), cut_below=1.0) for key, each in perfect.items()}
    by_pixels = {read_image(data.image_path(i)).tobytes(): found[i.id] for i in data.images}
    predictor = SimpleNamespace(
        card=SimpleNamespace(categories=data.categories, config=LIMITED),
        tile_side=lambda image_hw: None,
        predict=lambda images: [by_pixels[image.tobytes()] for image in images],
    )
    evaluation, _ = evaluate_split(predictor, data)
    [note] = evaluation.data.problems
    assert (note.kind, note.kept, note.count) == ("results_cut", True, len(data.images))
    assert "raise postprocess.max_instances" in evaluation.data.describe()
