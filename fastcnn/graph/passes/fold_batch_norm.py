"""Fold evaluation-mode BatchNorm into the convolution or linear layer before it.

BN(y) = (y − μ)·γ/√(σ²+ε) + β with y = W∗x + b is again a convolution: W' = W·s and b' = (b − μ)·s + β, s = γ/√(σ²+ε) per output channel
(Ioffe & Szegedy, Batch Normalization, ICML 2015). Computed in float64; the result is rounded once, when the constants are cast.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastcnn.graph.ir import CapturedGraph, add_folded, arguments, aten, only_user
from fastcnn.graph.plan import PassReport

# Target → rank of its output where dimension 1 holds the channels. `.padding` is the overload with padding="same" or "valid".
_FOLDABLE = {
    aten.conv1d.default: 3,
    aten.conv1d.padding: 3,
    aten.conv2d.default: 4,
    aten.conv2d.padding: 4,
    aten.conv3d.default: 5,
    aten.conv3d.padding: 5,
    aten.linear.default: 2,
}


def fold_batch_norm(captured: CapturedGraph) -> PassReport:
    """Fires on conv → BN and linear → BN where BN is the only reader; declines on batch statistics and on transposed convolutions."""
    report = PassReport("fold_batch_norm")
    for norm in captured.calls(aten.batch_norm.default):
        reason = _why_not(captured, norm)
        if reason:
            report.decline(reason)
            continue
        _fold(captured, norm)
        report.fired += 1
    return report


def _why_not(captured: CapturedGraph, norm: fx.Node) -> str:
    values = arguments(norm)
    if values["training"] or values["running_mean"] is None:
        return "BatchNorm uses the statistics of the batch"
    if not all(values[name] is None or captured.is_constant(values[name]) for name in ("weight", "bias", "running_mean", "running_var")):
        return "BatchNorm parameters are computed"
    producer = values["input"]
    if producer.target not in _FOLDABLE:
        return f"BatchNorm follows {getattr(producer.target, '__name__', producer.op)}"
    if only_user(producer) is not norm:
        return "the convolution's output is used elsewhere too"
    if len(norm.meta["shape"]) != _FOLDABLE[producer.target]:
        return "BatchNorm runs over another dimension than the output channels"
    if not captured.is_constant(producer.args[1]) or not (arguments(producer)["bias"] is None or captured.is_constant(arguments(producer)["bias"])):
        return "the convolution's weights are computed"
    return ""


def scale_and_shift(captured: CapturedGraph, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """The per-channel affine map, float64, that an evaluation-mode BatchNorm is: (scale [C], shift [C])."""
    values = arguments(norm)
    mean, variance = captured.constant(values["running_mean"]), captured.constant(values["running_var"])
    scale = (variance + values["eps"]).rsqrt()
    if values["weight"] is not None:
        scale = scale * captured.constant(values["weight"])
    shift = -mean * scale
    if values["bias"] is not None:
        shift = shift + captured.constant(values["bias"])
    return scale, shift


def _fold(captured: CapturedGraph, norm: fx.Node) -> None:
    producer: fx.Node = arguments(norm)["input"]
    values = arguments(producer)
    scale, shift = scale_and_shift(captured, norm)
    weight = captured.constant(values["weight"])
    bias = torch.zeros_like(shift) if values["bias"] is None else captured.constant(values["bias"])
    path = producer.meta.get("path") or producer.name
    folded_weight = captured.add_constant(f"{path}.weight", weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), before=producer)
    folded_bias = captured.add_constant(f"{path}.bias", bias * scale + shift, before=producer)
    producer.args = (values["input"], folded_weight, folded_bias, *producer.args[3:])
    producer.kwargs = {name: value for name, value in producer.kwargs.items() if name not in ("weight", "bias")}
    add_folded(producer, "batch_norm")
    captured.replace(norm, producer)
