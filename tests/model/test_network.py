import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from polarmask.config.settings import LossConfig, ModelConfig, PostprocessConfig
from polarmask.errors import ConfigError
from polarmask.geometry.locations import all_points
from polarmask.geometry.rays import decode_rays
from polarmask.network.backbone import Pyramid
from polarmask.network.backbone_weights import load_backbone_weights
from polarmask.network.detector import PolarMask
from polarmask.network.head import PolarHead, Predictions
from polarmask.network.losses import Targets, loss_sums
from polarmask.network.norm import group_norm
from polarmask.network.postprocess import postprocess


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_equal_the_paper_code():
    """R-50: FPN 3,868,672 and head 7,362,947 parameters, five strides, boxes."""
    detector = PolarMask(ModelConfig(backbone="resnet50", backbone_norm="batch"))
    assert count(detector.pyramid.fpn) == 3_868_672
    assert count(detector.head) == 7_362_947
    assert count(detector.pyramid.resnet) == 23_508_032


@pytest.mark.parametrize(
    "strides", [(2, 4, 8), (4, 8, 16), (8, 16, 32), (8, 16, 32, 64, 128), (16, 32, 64)]
)
def test_the_pyramid_has_one_level_per_stride(strides):
    config = ModelConfig(backbone="resnet18", channels=32, strides=strides)
    levels = Pyramid(config).eval()(torch.zeros(1, 3, 256, 128))
    assert [level.shape[2:] for level in levels] == [(256 // s, 128 // s) for s in strides]


def test_an_untrained_head_calls_everything_background(box_model):
    logit = PolarHead(box_model).class_logit.bias
    assert torch.sigmoid(logit).tolist() == pytest.approx([0.01] * len(logit), rel=1e-4)


def test_untrained_rays_and_boxes_are_about_one_stride_long(box_model):
    torch.manual_seed(0)
    predictions = PolarMask(box_model).eval()(torch.randn(1, 3, 128, 128))
    first = predictions.level_hws[0][0] * predictions.level_hws[0][1]
    assert predictions.ray_BLR[0, :first].median().item() == pytest.approx(8, rel=0.2)
    assert predictions.ray_BLR[0, -1].median().item() == pytest.approx(64, rel=0.2)
    assert predictions.box_BL4 is not None


@pytest.mark.parametrize("first_ray", [2.2, 0.5])
def test_untrained_rays_have_the_length_that_the_run_says(box_model, first_ray):
    torch.manual_seed(0)
    detector = PolarMask(replace(box_model, first_ray=first_ray)).eval()
    predictions = detector(torch.randn(1, 3, 128, 128))
    assert predictions.ray_BLR[0, 0].median().item() == pytest.approx(8 * first_ray, rel=0.2)


def no_targets(num_rays=36):
    empty = torch.zeros(0, dtype=torch.long)
    return Targets(
        image_P=empty,
        location_P=empty,
        category_P=empty,
        ray_PR=torch.zeros(0, num_rays),
        box_P4=torch.zeros(0, 4),
        ignored_I2=torch.zeros(0, 2, dtype=torch.long),
    )


def test_loss_without_positives_is_finite_and_keeps_the_graph(box_model):
    detector = PolarMask(box_model)
    predictions = detector(torch.randn(1, 3, 128, 128))
    sums = loss_sums(predictions, no_targets(), LossConfig())
    assert sums["ray"].item() == sums["quality"].item() == sums["box"].item() == 0
    sum(sums[name] for name in ("class", "ray", "quality", "box")).backward()
    assert all(p.grad is not None for p in detector.head.parameters())


def test_ignored_locations_do_not_count(box_model):
    predictions = PolarMask(box_model)(torch.randn(1, 3, 128, 128))
    num_locations = predictions.class_BLC.shape[1]
    everything = torch.stack(
        [torch.zeros(num_locations, dtype=torch.long), torch.arange(num_locations)], dim=1
    )
    targets = replace(no_targets(), ignored_I2=everything)
    assert loss_sums(predictions, targets, LossConfig())["class"].item() == 0


@pytest.mark.parametrize("centerness", ["polar", "soft", "polar_iou"])
def test_perfect_rays_have_no_ray_loss(box_model, centerness):
    predictions = PolarMask(box_model)(torch.randn(1, 3, 128, 128))
    at = torch.tensor([3, 40])
    targets = replace(
        no_targets(),
        image_P=torch.zeros(2, dtype=torch.long),
        location_P=at,
        category_P=torch.tensor([0, 5]),
        ray_PR=predictions.ray_BLR[0, at].detach(),
        box_P4=predictions.box_BL4[0, at].detach(),
    )
    sums = loss_sums(predictions, targets, LossConfig(centerness=centerness))
    assert sums["ray"].item() == pytest.approx(0, abs=1e-6)
    assert sums["box"].item() == pytest.approx(0, abs=1e-5)
    assert sums["positives"].item() == 2


def test_backbone_weights_are_read_from_a_file_without_executing_it(tmp_path, box_model):
    source, target = Pyramid(box_model), Pyramid(box_model)
    torch.save(source.resnet.state_dict(), tmp_path / "resnet18.pt")
    load_backbone_weights(target, str(tmp_path / "resnet18.pt"))
    for name, value in source.resnet.state_dict().items():
        assert torch.equal(value, target.resnet.state_dict()[name])


def test_weights_of_another_backbone_are_refused(tmp_path, box_model):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "half.pt")
    with pytest.raises(ConfigError, match=r"lacks .* parameters"):
        load_backbone_weights(Pyramid(box_model), str(tmp_path / "half.pt"))


def test_an_unknown_weights_name_says_what_to_write():
    with pytest.raises(ConfigError, match="ResNet50_Weights"):
        load_backbone_weights(Pyramid(ModelConfig(channels=32)), "resnet-fifty")


def predictions_of(circles, *, hw=(8, 8), categories=2, stride=4):
    """Raw output of one level in which only the given locations see something."""
    rows, columns = hw
    class_logit = torch.full((1, rows * columns, categories), -20.0)
    quality_logit = torch.full((1, rows * columns), 20.0)
    ray = torch.ones(1, rows * columns, 36)
    for row, column, category, score, radius in circles:
        at = row * columns + column
        class_logit[0, at, category] = math.log(score / (1 - score))
        ray[0, at] = radius
    return Predictions(class_logit, quality_logit, ray, None, (hw,))


def decode(circles, image_hw=(32, 32), **settings):
    config = PostprocessConfig(**settings)
    return postprocess(predictions_of(circles), [image_hw], strides=(4,), config=config)[0]


def test_an_instance_has_its_polygon_around_its_location():
    found = decode([(2, 3, 1, 0.9, 5.0)])
    assert found.category_N.tolist() == [1]
    assert found.score_N.tolist() == pytest.approx([0.9], rel=1e-4)
    assert found.center_N2.tolist() == [[14, 10]]
    assert found.polygon_NR2[0, 0].tolist() == pytest.approx([19, 10])
    assert found.box_N4[0].tolist() == pytest.approx([9, 5, 19, 15])


def test_of_two_overlapping_instances_of_a_category_the_better_stays():
    circles = [(3, 3, 0, 0.7, 6.0), (3, 4, 0, 0.8, 6.0), (3, 4, 1, 0.6, 6.0)]
    found = decode(circles, nms_iou=0.4)
    assert sorted(zip(found.category_N.tolist(), found.center_N2[:, 0].tolist(), strict=True)) == [
        (0, 18),
        (1, 18),
    ]


def crowded(candidates, *, hw=(48, 48), categories=7):
    """Raw output of two levels with so many class scores above 0.05, many of them alike."""
    random = torch.Generator().manual_seed(candidates)
    level_hws = (hw, (hw[0] // 2, hw[1] // 2))
    locations = sum(rows * columns for rows, columns in level_hws)
    class_logit = torch.full((1, locations, categories), -4.0)
    chosen = torch.randperm(class_logit.numel(), generator=random)[:candidates]
    class_logit.view(-1)[chosen] = torch.rand(candidates, generator=random) * 4 - 2.5
    return Predictions(
        class_BLC=class_logit,
        quality_BL=torch.randn(1, locations, generator=random),
        ray_BLR=torch.rand(1, locations, 36, generator=random) * 20 + 2,
        box_BL4=None,
        level_hws=level_hws,
    )


def decode_one_by_one(predictions, image_hw, config):
    """Return (score, category, location) of what is kept, each candidate held against all kept."""
    points = all_points(predictions.level_hws, (4, 8), torch.device("cpu"))
    quality = predictions.quality_BL[0].sigmoid()
    probability = predictions.class_BLC[0].sigmoid()
    candidates, first = [], 0
    for rows, columns in predictions.level_hws:
        level = [
            (float(probability[at, category] * quality[at]), category, at)
            for at, category in (probability > config.score_threshold).nonzero().tolist()
            if first <= at < first + rows * columns
            and points[at, 0] < image_hw[1]
            and points[at, 1] < image_hw[0]
        ]
        candidates += sorted(level, reverse=True)[: config.pre_nms_top_k]
        first += rows * columns
    kept = []
    for candidate in sorted(candidates, reverse=True):
        polygon = decode_rays(
            points[candidate[2]][None], predictions.ray_BLR[0, candidate[2]][None]
        )
        polygon = polygon[0].clamp(min=0).minimum(torch.tensor(image_hw[::-1]))
        box = torch.cat([polygon.amin(dim=0), polygon.amax(dim=0)])[None]
        rivals = [other for _, category, _, other in kept if category == candidate[1]]
        if all(box_iou(box, other) <= config.nms_iou for other in rivals):
            kept.append((*candidate, box))
    return [(score, category, at) for score, category, at, _ in kept[: config.max_instances]]


@pytest.mark.parametrize(
    ("candidates", "max_instances"),
    [
        pytest.param(0, 100, id="nothing"),
        pytest.param(60, 100, id="fewer-than-wanted"),
        pytest.param(1500, 20, id="the-best-suffice"),
        pytest.param(1500, 300, id="most-are-compared"),
    ],
)
def test_decoding_agrees_with_one_candidate_at_a_time(candidates, max_instances):
    predictions = crowded(candidates)
    config = PostprocessConfig(max_instances=max_instances, pre_nms_top_k=450)
    image_hw = (180, 190)
    [found] = postprocess(predictions, [image_hw], strides=(4, 8), config=config)
    expected = decode_one_by_one(predictions, image_hw, config)
    assert found.score_N.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)
    assert found.category_N.tolist() == [category for _, category, _ in expected]
    points = all_points(predictions.level_hws, (4, 8), torch.device("cpu"))
    assert found.center_N2.tolist() == points[[at for _, _, at in expected]].tolist()


def two_parts(*, boxes_agree):
    """Raw output with a part left and a part right; what the left one takes for the whole box."""
    predictions = predictions_of([(2, 1, 0, 0.9, 3.0), (2, 6, 0, 0.8, 3.0), (6, 3, 1, 0.7, 3.0)])
    side_14 = {True: (3.0, 3.0, 23.0, 3.0), False: (3.0, 3.0, 3.0, 3.0)}[boxes_agree]
    box = torch.full((1, 64, 4), 3.0)
    box[0, 2 * 8 + 1] = torch.tensor(side_14)
    box[0, 2 * 8 + 6] = torch.tensor((23.0, 3.0, 3.0, 3.0))
    return replace(predictions, box_BL4=box)


@pytest.mark.parametrize(
    ("boxes_agree", "instances"), [(True, [0, 0, 1]), (False, [0, 1, 2])], ids=["one", "two"]
)
def test_parts_are_one_instance_when_they_predict_one_box(boxes_agree, instances):
    [found] = postprocess(
        two_parts(boxes_agree=boxes_agree),
        [(32, 32)],
        strides=(4,),
        config=PostprocessConfig(),
        parts="all",
    )
    assert found.instance_N.tolist() == instances
    assert found.score_N.tolist() == pytest.approx([0.9, 0.8, 0.7], rel=1e-4)


def test_an_instance_in_two_parts_counts_once_against_the_limit():
    config = PostprocessConfig(max_instances=1)
    found = postprocess(
        two_parts(boxes_agree=True), [(32, 32)], strides=(4,), config=config, parts="all"
    )
    assert found[0].instance_N.tolist() == [0, 0]


def test_polygons_end_at_the_image_border():
    found = decode([(0, 0, 0, 0.9, 50.0)], image_hw=(30, 20))
    assert found.polygon_NR2.amin().item() == 0
    assert found.polygon_NR2[0].amax(dim=0).tolist() == [20, 30]


def test_locations_in_the_padding_find_nothing():
    assert len(decode([(7, 7, 0, 0.9, 5.0)], image_hw=(20, 20)).score_N) == 0


def test_low_scores_are_dropped_and_the_best_are_kept():
    circles = [
        (row, column, 0, 0.3 + 0.005 * (8 * row + column), 1.0)
        for row in range(8)
        for column in range(8)
    ]
    found = decode([*circles, (0, 0, 0, 0.04, 1.0)], max_instances=3)
    assert found.score_N.tolist() == pytest.approx([0.615, 0.61, 0.605], rel=1e-3)


def test_nothing_found_is_empty_and_not_an_error():
    found = decode([])
    assert found.polygon_NR2.shape == (0, 36, 2)


@pytest.mark.parametrize(
    ("channels", "together", "groups"),
    [(256, 0, 32), (48, 0, 16), (64, 16, 4), (32, 16, 2), (24, 16, 3), (16, 64, 1)],
)
def test_group_norm_takes_as_many_channels_as_are_set(channels, together, groups):
    assert group_norm(channels, together).num_groups == groups
