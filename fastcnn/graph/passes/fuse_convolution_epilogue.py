"""Fuse what follows a convolution into it: bias (already its argument), residual add, ReLU."""

from __future__ import annotations

from torch import fx

from fastcnn.graph.ir import CapturedGraph, Convolution, add_folded, arguments, aten, only_user
from fastcnn.graph.ops import fused_conv2d
from fastcnn.graph.plan import PassReport


def fuse_convolution_epilogue(captured: CapturedGraph) -> PassReport:
    """conv2d [→ add] [→ ReLU] becomes one `fused_conv2d` step; a convolution whose output is used twice keeps its output."""
    report = PassReport("fuse_convolution_epilogue")
    order = {node: index for index, node in enumerate(captured.graph.nodes)}
    for conv in captured.calls(aten.conv2d.default):
        last, residual, relu = conv, None, False
        user = only_user(conv)
        if user is not None and user.target is aten.add.Tensor:
            residual = _residual(captured, conv, user, order)
            if residual is None:
                report.decline("the add broadcasts, scales, or has a convolution that runs later")
            else:
                last, user = user, only_user(user)
        if user is not None and user.target is aten.relu.default:
            last, relu = user, True
        if last is conv:
            if user is None and len(conv.users) > 1:
                report.decline("the convolution's output is used twice")
            continue
        _fuse(captured, conv, last, residual, relu)
        report.fired += 1
    return report


def _residual(captured: CapturedGraph, conv: fx.Node, add: fx.Node, order: dict[fx.Node, int]) -> fx.Node | None:
    """The other operand of `add`, where it has the same shape and is there when `conv` runs at the place of `add`."""
    values = arguments(add)
    other = values["other"] if values["self"] is conv else values["self"]
    if values["alpha"] != 1 or not isinstance(other, fx.Node) or other is conv or captured.is_constant(other):
        return None
    if other.meta.get("shape") != conv.meta["shape"] or other.meta.get("dtype") != conv.meta["dtype"]:
        return None
    # Of two convolutions that meet in an add, the one that runs last takes the other's output as its residual.
    is_convolution = other.target is aten.conv2d.default and only_user(other) is add
    return None if is_convolution and order[other] > order[conv] else other


def _fuse(captured: CapturedGraph, conv: fx.Node, last: fx.Node, residual: fx.Node | None, relu: bool) -> None:
    fused = captured.call(fused_conv2d, (*Convolution.of(conv).args(), residual, relu), before=last, like=conv)
    if residual is not None:
        add_folded(fused, "add")
    if relu:
        add_folded(fused, "relu")
    captured.replace(last, fused)
    captured.graph.eliminate_dead_code()
