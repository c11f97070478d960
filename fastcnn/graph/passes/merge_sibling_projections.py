"""Merge 1×1 convolutions that read the same value into one, whose output channels are then sliced.

One wide matrix product instead of two to four narrow ones, and the input is read once (Inception blocks have three such siblings). It helps where a
kernel launch or a re-read is dear (GPU) and hurts where the slices must be copied (CPU runtimes).
"""

from __future__ import annotations

from itertools import accumulate, groupby

import torch
from torch import fx

from fastcnn.graph.ir import CapturedGraph, Convolution, add_folded, aten, only_user
from fastcnn.graph.plan import PassReport


def merge_sibling_projections(captured: CapturedGraph) -> PassReport:
    """Fires on two or more projections of one value that agree in what follows them (ReLU or nothing); run it after BatchNorm is folded."""
    report = PassReport("merge_sibling_projections")
    order = {node: index for index, node in enumerate(captured.graph.nodes)}
    for node in order:
        convolutions = [user for user in node.users if user.target is aten.conv2d.default and user.args[0] is node]
        if len(convolutions) < 2:
            continue
        pointwise = [conv for conv in convolutions if Convolution.of(conv).kernel == (1, 1)]
        siblings = [conv for conv in pointwise if _is_mergeable(captured, conv)]
        for _ in range(len(pointwise) - len(siblings)):
            report.decline("a 1×1 sibling has a stride, padding, groups or computed weights")
        if len(siblings) < 2:
            continue
        siblings.sort(key=_has_relu)
        for with_relu, group in groupby(siblings, key=_has_relu):
            members = sorted(group, key=order.__getitem__)
            if len(members) < 2:
                report.decline("siblings differ in what follows them")
                continue
            _merge(captured, members, with_relu)
            report.fired += 1
    return report


def _is_mergeable(captured: CapturedGraph, node: fx.Node) -> bool:
    conv = Convolution.of(node)
    return (
        conv.is_projection
        and len(node.meta["shape"]) == 4
        and captured.is_constant(conv.weight)
        and (conv.bias is None or captured.is_constant(conv.bias))
    )


def _has_relu(conv: fx.Node) -> bool:
    user = only_user(conv)
    return user is not None and user.target is aten.relu.default


def _merge(captured: CapturedGraph, members: list[fx.Node], with_relu: bool) -> None:
    first, parts = members[0], [Convolution.of(member) for member in members]
    weights = [captured.constant(part.weight) for part in parts]
    biases = [
        weight.new_zeros(len(weight)) if part.bias is None else captured.constant(part.bias) for part, weight in zip(parts, weights, strict=True)
    ]
    path = "+".join(member.meta.get("path") or member.name for member in members)
    batch, _, height, width = first.meta["shape"]
    weight = captured.add_constant(f"{path}.weight", torch.cat(weights), before=first)
    bias = captured.add_constant(f"{path}.bias", torch.cat(biases), before=first)
    merged = captured.call(
        aten.conv2d.default, parts[0].args(weight=weight, bias=bias), before=first, like=first, shape=(batch, sum(map(len, weights)), height, width)
    )
    merged.meta["path"] = path
    merged.meta["folded"] = ()
    add_folded(merged, *dict.fromkeys(what for member in members for what in member.meta["folded"]), f"{len(members)} siblings")
    value = captured.call(aten.relu.default, (merged,), before=first, like=merged) if with_relu else merged
    ends = list(accumulate(map(len, weights)))
    pieces = [
        captured.call(aten.slice.Tensor, (value, 1, end - len(weight), end), before=first, like=member)
        for member, weight, end in zip(members, weights, ends, strict=True)
    ]
    for member, piece in zip(members, pieces, strict=True):
        piece.meta["folded"] = ()
        relu = only_user(member) if with_relu else None
        captured.replace(relu or member, piece)
    captured.graph.eliminate_dead_code()
