"""torchvision's Mask R-CNN with a ResNet-18 from scratch; run by `benchmarks/peers.py`.

Group norm everywhere, as steps hold two images. The pyramid and the heads are 64 channels wide
instead of 256, so that a budget of minutes on a CPU holds more steps. Anchors of 4 to 48 pixels at
strides 4 to 32, as nuclei have 4 to 40.

Dimension key
    N: instances    H, W: rows and columns    4: left, top, right, bottom
"""

import math
from functools import partial

import numpy as np
import torch
import torchvision
from exchange import LOW_SCORE, main, milliseconds, read_split, user_seconds
from judge import operating_score
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from tqdm import tqdm

from polarmask.geometry.masks import rles_from_labels

WIDTH = 64
ANCHORS = ((4, 6), (8, 12), (16, 24), (32, 48))
"""Sides in pixels at strides 4, 8, 16, 32."""
BATCH, LEARNING_RATE, WEIGHT_DECAY = 2, 1e-3, 0.05
WARM_UP = 0.05
"""Of the budget; then the rate falls to zero along a cosine."""
MOST = 500
SAMPLED = 128
"""Proposals per image that the heads learn from; of these at most a quarter are objects."""


def network():
    """Return the untrained network."""
    norm = partial(nn.GroupNorm, 16)
    resnet = torchvision.models.resnet18(weights=None, norm_layer=norm)
    layers = {"layer1": "0", "layer2": "1", "layer3": "2"}
    pyramid = BackboneWithFPN(
        resnet, layers, [64, 128, 256], WIDTH, extra_blocks=LastLevelMaxPool(), norm_layer=norm
    )
    anchors = AnchorGenerator(ANCHORS, ((0.5, 1.0, 2.0),) * len(ANCHORS))
    return MaskRCNN(
        pyramid,
        min_size=256,
        max_size=256,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(WIDTH, anchors.num_anchors_per_location()[0]),
        rpn_post_nms_top_n_train=1000,
        box_head=FastRCNNConvFCHead((WIDTH, 7, 7), [WIDTH] * 2, [256], norm_layer=norm),
        box_predictor=FastRCNNPredictor(256, 2),
        box_score_thresh=LOW_SCORE,
        box_detections_per_img=MOST,
        box_batch_size_per_image=SAMPLED,
        mask_head=MaskRCNNHeads(WIDTH, [WIDTH] * 4, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, 2),
    )


def train(data, out, seconds):
    """Train until the budget is used up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images, labels = read_split(data, "train")
    net = network().train()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    steps, order = 0, []
    with tqdm(total=round(seconds), desc="Mask R-CNN", unit="CPU s") as bar:
        while (used := user_seconds()) < seconds:
            bar.update(round(used) - bar.n)
            if len(order) < BATCH:
                order = rng.permutation(len(images)).tolist()
            chosen = [order.pop() for _ in range(BATCH)]
            _step(net, optimizer, _rate(used / seconds), images[chosen], labels[chosen], rng)
            steps += 1
    torch.save(net.state_dict(), out / "weights.pt")
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return {"seconds": user_seconds(), "steps": steps, "batch": BATCH, "versions": versions}


def _rate(part):
    if part < WARM_UP:
        return LEARNING_RATE * (0.05 + part / WARM_UP) / 1.05
    return LEARNING_RATE * (1 + math.cos(math.pi * (part - WARM_UP) / (1 - WARM_UP))) / 2


def _step(net, optimizer, rate, images, labels, rng):
    for group in optimizer.param_groups:
        group["lr"] = rate
    turned = [_turned(*pair, rng) for pair in zip(images, labels, strict=True)]
    losses = net([_tensor(image) for image, _ in turned], [_target(label) for _, label in turned])
    loss = sum(losses.values())
    if not torch.isfinite(loss):
        raise SystemExit(f"the loss became {loss.item()}; lower LEARNING_RATE in {__file__}")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 10.0)
    optimizer.step()


def _turned(image, label, rng):
    """Turn and mirror at random, as our own training does."""
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    pair = [np.rot90(each, quarters) for each in (image, label)]
    return [np.ascontiguousarray(each[:, ::-1] if mirrored else each) for each in pair]


def _tensor(image_HW):
    return torch.from_numpy(image_HW).float().div(255).expand(3, -1, -1)


def _target(label_HW):
    numbers = np.unique(label_HW[label_HW > 0])
    mask_NHW = label_HW == numbers[:, None, None]
    boxes = np.zeros((len(numbers), 4), dtype=np.float32)
    for box_4, mask_HW in zip(boxes, mask_NHW, strict=True):
        rows, columns = np.nonzero(mask_HW)
        box_4[:] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.ones(len(numbers), dtype=torch.int64),
        "masks": torch.from_numpy(mask_NHW.astype(np.uint8)),
    }


def predict(data, out):
    """Find the instances of both splits, and time those of val at the operating score."""
    torch.set_num_threads(1)
    net = network().eval()
    net.load_state_dict(torch.load(out / "weights.pt"))
    (train_images, _), (images, _) = (read_split(data, split) for split in ("train", "val"))
    score = operating_score(data, [_find(net, image) for image in tqdm(train_images, "train")])
    found = [_find(net, image) for image in tqdm(images, "val")]
    net.roi_heads.score_thresh = score
    times = milliseconds(lambda image: _label_image(net, image), images)
    return {"found": found, "operating_score": score, "milliseconds": times}


@torch.inference_mode()
def _masks(net, image_HW):
    """Return masks (N, H, W) bool and scores (N,), best first."""
    (found,) = net([_tensor(image_HW)])
    return (found["masks"][:, 0] > 0.5).numpy(), found["scores"].numpy()


def _rles(net, image_HW):
    mask_NHW, score_N = _masks(net, image_HW)
    kept = mask_NHW.any(axis=(1, 2))
    return [rles_from_labels(mask.astype(np.uint8))[0] for mask in mask_NHW[kept]], score_N[kept]


def _find(net, image_HW):
    rles, score_N = _rles(net, image_HW)
    return {"rles": rles, "scores": score_N.tolist()}


def _label_image(net, image_HW):
    mask_NHW, _ = _masks(net, image_HW)
    label_HW = np.zeros(image_HW.shape, dtype=np.int32)
    for number in range(len(mask_NHW), 0, -1):
        label_HW[mask_NHW[number - 1]] = number
    return label_HW


if __name__ == "__main__":
    main(train, predict, __doc__)
