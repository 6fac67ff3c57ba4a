"""Fold batch norm into the convolution before it: the same function in fewer operations."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from polarmask.network.deform import DeformConv2d
from polarmask.network.timm_backbone import TimmFeatures


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> None:
    """Fold in place every norm that directly follows a convolution. For inference only."""
    of_timm = [module for module in network.modules() if isinstance(module, TimmFeatures)]
    inside = {part for module in of_timm for part in module.modules()}
    for parent in [module for module in network.modules() if module not in inside]:
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d | DeformConv2d) and isinstance(
                norm, nn.BatchNorm2d | FrozenBatchNorm2d
            ):
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())
    for module in of_timm:
        for conv_name, name in list(_pairs_called(module.net)):
            norm = module.net.get_submodule(name)
            _fold(module.net.get_submodule(conv_name), norm)
            # What timm does in its norms after normalising: dropout, then activation.
            module.net.set_submodule(name, nn.Sequential(*norm.children()))


def _fold(conv: Any, norm: Any) -> None:  # noqa: ANN401  # timm's norms have no type of their own
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)  # noqa: S101  # norms without statistics are not built
    assert isinstance(variance, Tensor)  # noqa: S101  # likewise
    scale = norm.weight / (variance + norm.eps).sqrt()
    shift = norm.bias - mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    conv.weight.copy_(conv.weight * scale[:, None, None, None])
    conv.bias = nn.Parameter(shift, requires_grad=False)


def _pairs_called(net: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of convolution and norm where the norm alone reads the convolution.

    timm's modules are not called in the order in which they are registered, so the calls are
    traced. A model that can't be traced has no pairs, and computes the same, only slower.
    """
    from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d

    # Of these types only: subclasses may scale their weights in each call.
    convs = (nn.Conv2d, Conv2dSame)
    norms = (nn.BatchNorm2d, FrozenBatchNorm2d, BatchNormAct2d, FrozenBatchNormAct2d)

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return type(module) in convs + norms or super().is_leaf_module(module, name)

    try:
        graph = Tracer().trace(net)
    except Exception:  # the code of models fails in any way
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(net.get_submodule(str(node.target)) for node in calls)
    for node in calls:
        norm, before = net.get_submodule(str(node.target)), node.args[0]
        if type(norm) not in norms or not isinstance(before, fx.Node) or before not in calls:
            continue
        conv = net.get_submodule(str(before.target))
        alone = len(before.users) == 1 and times[norm] == times[conv] == 1
        if type(conv) in convs and alone:
            yield str(before.target), str(node.target)
