"""Compute once what depends on constants only, such as the standardised weights of `timm`'s `StdConv2d`."""

from __future__ import annotations

import torch
from torch import fx

from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import PassReport

# A folded value larger than this would cost more memory than it saves time.
_MAX_ELEMENTS = 64 * 2**20


def fold_constants(captured: CapturedGraph) -> PassReport:
    """Replace calls whose arguments are all constant tensors by their value, computed in float64."""
    report = PassReport("fold_constants")
    for node in captured.calls():
        if not node.all_input_nodes or not all(captured.is_constant(argument) for argument in node.all_input_nodes):
            continue
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            or torch.Tag.nondeterministic_seeded in node.target.tags
            or node.target._schema.is_mutable
        ):
            report.decline("not a pure function")
            continue
        if node.meta["dtype"] is None or not node.meta["dtype"].is_floating_point:
            report.decline("not a floating-point value")
            continue
        args = fx.map_arg(node.args, captured.constant)
        value = node.target(*args, **fx.map_arg(node.kwargs, captured.constant))
        if not isinstance(value, torch.Tensor) or value.numel() > _MAX_ELEMENTS:
            report.decline("several values or a large one")
            continue
        captured.replace(node, captured.add_constant(f"{node.meta.get('path') or node.name}.folded", value.contiguous(), before=node))
        report.fired += 1
    return report
