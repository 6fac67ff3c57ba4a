"""An inspection as text for a terminal."""

from collections.abc import Sequence

from polarmask.evaluation.inspect_data import Inspection, Levels
from polarmask.evaluation.object_sizes import SIDE_EDGES, range_labels


def describe(inspection: Inspection) -> str:
    """Return the inspection as text for a terminal."""
    low, middle, high = inspection.side_quantiles
    lines = [
        f"{inspection.split}: {inspection.images} of {inspection.total_images} images, "
        f"{inspection.instances} objects ({inspection.in_parts} in several parts), "
        f"{inspection.crowds} crowd regions",
        f"size (square root of area at the network's input): median {middle:.0f} px, "
        f"80 % from {low:.0f} to {high:.0f} px",
        *_describe_sizes(inspection.size_counts),
        *_describe_levels("levels as configured", inspection.levels),
        *_describe_levels("levels as recommended", inspection.recommended_levels),
        "upper bound, every centre and ray exact:",
        "  rays  mean IoU     AP   AP50   AP75",
        *(
            f"  {bound.num_rays:4d}     {bound.mean_iou:.3f}  {bound.mask_ap:.3f}  "
            f"{bound.mask_ap50:.3f}  {bound.mask_ap75:.3f}"
            for bound in inspection.bounds
        ),
        f"recommended, because {inspection.recommendation.reason}:",
        *(f"  --set '{setting}'" for setting in inspection.recommendation.overrides()),
    ]
    return "\n".join(lines)


def _describe_sizes(counts: Sequence[int]) -> list[str]:
    most = max(counts)
    return [
        f"  {label:>8s} {count:7d} {'#' * round(40 * count / most)}".rstrip()
        for label, count in zip(range_labels(SIDE_EDGES), counts, strict=True)
        if count
    ]


def _describe_levels(title: str, levels: Levels) -> list[str]:
    return [
        f"{title} ({levels.without_positive:.1%} of the objects without a positive):",
        *(
            f"  stride {stride:3d}: {instances} objects, {positives} positives"
            for stride, instances, positives in zip(
                levels.strides, levels.instances, levels.positives, strict=True
            )
        ),
    ]
