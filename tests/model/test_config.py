import json
from dataclasses import fields, is_dataclass

import pytest

from polarmask.config.overrides import override
from polarmask.config.presets import PRESETS, preset
from polarmask.config.settings import from_dict, to_dict
from polarmask.errors import ConfigError


def test_every_preset_survives_json():
    presets = {name: preset(name) for name in PRESETS}
    documents = {name: json.dumps(to_dict(each), allow_nan=False) for name, each in presets.items()}
    assert {name: from_dict(json.loads(text)) for name, text in documents.items()} == presets


def test_an_override_reaches_any_field_and_keeps_its_type():
    config = override(
        preset("tiny"),
        ["optim.lr=0.005", "input.short_side=none", "model.strides=[8,16,32]", "augment=flip"],
    )
    assert config.optim.lr == 0.005
    assert config.input.short_side is None
    assert config.model.strides == (8, 16, 32)
    assert config.augment == "flip"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("augment.x=1", r"augment\.x is not a setting; there are: augment, "),
        ("optim.rate=1", r"optim\.rate is not a setting.*; there are: amp, batch_size"),
        ("optim.epoch=1", r"did you mean optim\.epochs\?"),
        ("optm.lr=1", r"did you mean optim\.lr\?"),
        ("optim.lr=fast", r"optim\.lr: .*'fast'"),
        ("optim.lr=-1", r"lr is -1\.0: must be above 0"),
        ("optim.weight_decay=-1", r"weight_decay is -1\.0: must not be below 0"),
        ("optim.warmup_steps=-1", "warmup_steps is -1: must not be below 0"),
        ("optim.lr_drops=[8]", r"lr_drops \(8\.0,\): each is a fraction"),
        ("loss.focal_gamma=-1", r"focal_gamma is -1\.0: must not be below 0"),
        ("loss.focal_alpha=1", r"focal_alpha is 1\.0: must be in \(0, 1\)"),
        ("optim.grad_clip=0", r"grad_clip is 0\.0: must be above 0"),
        ("labels.min_area=-Infinity", r"min_area is -inf: must be a finite number"),
        ("seed=-1", r"seed is -1: must be 0 or above"),
        ("model.num_rays=3", r"a polygon needs at least 4 rays"),
        ("model.first_ray=0", r"first_ray is 0\.0: must be above 0"),
        ("model.strides=[1,2,4]", r"start at 2, 4, 8, 16 or 32"),
        ("model.strides=[8,32,64]", r"must double"),
        ("model.strides=[4,8]", r"3 level_ranges for 2 strides"),
        ("labels.level_ranges=[[0,24],[24,48],[48,96]]", r'last must end with "inf"'),
        ("model.channels=50", r"multiple of 32"),
        ("model.num_rays=18", r"dihedral.*multiple of 4"),
        ("augment=spin", r"augment"),
        ("model.backbone_norm=frozen_batch", r"--set backbone_weights=FILE, or"),
        ("lr", r"write for example optim\.lr=0\.005"),
    ],
)
def test_a_bad_override_says_what_is_wrong(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(preset("tiny"), [assignment])


def test_an_unknown_key_in_a_stored_config_is_named():
    with pytest.raises(ConfigError, match=r"model\.depth"):
        from_dict({"name": "x", "model": {"depth": 3}})


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"coco-r50-1x, .*, tiny"):
        preset("huge")


def test_the_paper_preset_has_the_paper_s_numbers():
    """Section 4 of the paper and its released configuration for R-50, 1x."""
    config = preset("coco-r50-1x")
    assert config.model.num_rays == 36
    assert config.model.strides == (8, 16, 32, 64, 128)
    assert (config.optim.lr, config.optim.batch_size, config.optim.epochs) == (0.01, 16, 12)
    assert config.labels.level_ranges[-1] == (512, float("inf"))


def test_every_section_is_a_frozen_dataclass():
    for field in fields(preset("tiny")):
        value = getattr(preset("tiny"), field.name)
        if is_dataclass(value):
            with pytest.raises(AttributeError):
                setattr(value, fields(value)[0].name, None)


def test_augmentation_can_be_switched_off_from_the_command_line():
    assert override(preset("tiny"), ["augment=off"]).augment == "off"


def test_a_field_of_a_number_is_no_setting():
    with pytest.raises(ConfigError, match=r"seed\.x is not a setting; there are: augment, "):
        override(override(preset("tiny"), ["seed=1"]), ["seed.x=1"])
