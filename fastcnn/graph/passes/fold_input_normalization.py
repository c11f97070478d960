"""Fold per-channel input normalisation into the first convolution.

Normalisation maps each input channel by x ↦ a·x + b: W∗(a·x + b) = (W·a)∗x + Σ W·b. The second term is a constant only where every output position
sees all taps, so a shift b ≠ 0 needs an unpadded convolution: Inception-v3's `transform_input` folds, GoogLeNet's (7×7, padding 3) does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fastcnn.graph.ir import CapturedGraph, Convolution, add_folded, arguments, aten
from fastcnn.graph.plan import PassReport


@dataclass(frozen=True)
class _Channel:
    """One channel of an intermediate value: scale · input[source] + shift."""

    source: int
    scale: float
    shift: float


# A value of the normalisation as channels of the input; `None` in place of the list: a [N, H, W] value, a channel picked by `select`.
@dataclass(frozen=True)
class _Value:
    channels: tuple[_Channel, ...]
    picked: bool = False

    def map(self, scale: list[float], shift: list[float]) -> _Value:
        count = len(self.channels)
        scale, shift = (values * count if len(values) == 1 else values for values in (scale, shift))
        if len(scale) != count or len(shift) != count:
            raise _NotAffineError
        return _Value(
            tuple(_Channel(c.source, c.scale * a, c.shift * a + b) for c, a, b in zip(self.channels, scale, shift, strict=True)), self.picked
        )


class _NotAffineError(Exception):
    """The value is no per-channel affine map of the input."""


def fold_input_normalization(captured: CapturedGraph) -> PassReport:
    """Fires on the convolution that reads the input through per-channel multiplications, additions, channel picks and a concat; else declines."""
    report = PassReport("fold_input_normalization")
    for conv in captured.calls(aten.conv2d.default):
        values = Convolution.of(conv)
        if values.input is captured.input_node:
            continue
        try:
            value = _trace(captured, values.input)
        except _NotAffineError:
            continue
        reason = _why_not(captured, values, value)
        if reason:
            report.decline(reason)
            continue
        _fold(captured, conv, values, value)
        report.fired += 1
    return report


def _trace(captured: CapturedGraph, node: Any) -> _Value:
    """Express `node` by the channels of the input, in double precision."""
    if not isinstance(node, fx.Node):
        raise _NotAffineError
    if node is captured.input_node:
        # A convolution does not read integers: what makes real numbers of them stays in front of it.
        channels = captured.input_shape[1] if len(captured.input_shape) == 4 and captured.input_dtype.is_floating_point else None
        if channels is None:
            raise _NotAffineError
        return _Value(tuple(_Channel(index, 1.0, 0.0) for index in range(channels)))
    handler = _HANDLERS.get(node.target)
    if handler is None:
        raise _NotAffineError
    return handler(captured, node)


def _numbers(captured: CapturedGraph, operand: Any, value: _Value) -> list[float]:
    """A scalar, or a constant tensor that varies along the channels only, as a list of numbers."""
    if isinstance(operand, (int, float)):
        return [float(operand)]
    if not captured.is_constant(operand):
        raise _NotAffineError
    tensor: Tensor = captured.constant(operand)
    if tensor.numel() == 1 and tensor.dim() <= (3 if value.picked else 4):
        return [float(tensor)]
    along_channels = tensor.dim() in (3, 4) and tensor.shape[-2:] == (1, 1) and tensor.numel() == tensor.shape[-3]
    if value.picked or not along_channels:
        raise _NotAffineError
    return [float(number) for number in tensor.flatten()]


def _arithmetic(captured: CapturedGraph, node: fx.Node) -> _Value:
    left, right = node.args[0], node.args[1]
    if arguments(node).get("alpha", 1) != 1:
        raise _NotAffineError
    op = node.target
    if not isinstance(left, fx.Node) or captured.is_constant(left):
        if op not in (aten.add.Tensor, aten.mul.Tensor):
            raise _NotAffineError
        left, right = right, left
    value = _trace(captured, left)
    numbers = _numbers(captured, right, value)
    if op in (aten.mul.Tensor, aten.mul.Scalar):
        return value.map(numbers, [0.0])
    if op in (aten.div.Tensor, aten.div.Scalar):
        if 0.0 in numbers:
            raise _NotAffineError
        return value.map([1.0 / number for number in numbers], [0.0])
    return value.map([1.0], [-number for number in numbers] if op in (aten.sub.Tensor, aten.sub.Scalar) else numbers)


def _select(captured: CapturedGraph, node: fx.Node) -> _Value:
    values = arguments(node)
    value = _trace(captured, values["self"])
    if value.picked or values["dim"] != 1:
        raise _NotAffineError
    return _Value((value.channels[values["index"]],), picked=True)


def _unsqueeze(captured: CapturedGraph, node: fx.Node) -> _Value:
    values = arguments(node)
    value = _trace(captured, values["self"])
    if not value.picked or values["dim"] != 1:
        raise _NotAffineError
    return _Value(value.channels)


def _slice(captured: CapturedGraph, node: fx.Node) -> _Value:
    values = arguments(node)
    value = _trace(captured, values["self"])
    if not all(values[name] is None or isinstance(values[name], int) for name in ("start", "end")):
        raise _NotAffineError
    full = values["start"] in (None, 0) and (values["end"] is None or values["end"] >= 2**31) and values["step"] == 1
    if full and values["dim"] != 1:
        return value
    if value.picked or values["dim"] != 1:
        raise _NotAffineError
    return _Value(value.channels[values["start"] : values["end"] : values["step"]])


def _concat(captured: CapturedGraph, node: fx.Node) -> _Value:
    values = arguments(node)
    parts = [_trace(captured, part) for part in values["tensors"]]
    is_stack = node.target is aten.stack.default
    if values["dim"] != 1 or any(part.picked is not is_stack for part in parts):
        raise _NotAffineError
    return _Value(tuple(channel for part in parts for channel in part.channels))


_HANDLERS: dict[Any, Any] = {
    **dict.fromkeys(
        (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar),
        _arithmetic,
    ),
    aten.select.int: _select,
    aten.unsqueeze.default: _unsqueeze,
    aten.slice.Tensor: _slice,
    aten.cat.default: _concat,
    aten.stack.default: _concat,
}


def _why_not(captured: CapturedGraph, conv: Convolution, value: _Value) -> str:
    if value.picked:
        return "the convolution reads one channel without its dimension"
    if not captured.is_constant(conv.weight) or not (conv.bias is None or captured.is_constant(conv.bias)):
        return "the convolution's weights are computed"
    if conv.groups != 1:
        return "grouped convolution"
    if conv.padding != (0, 0) and any(channel.shift != 0 for channel in value.channels):
        return "the first convolution pads: a shifted border would not be zero"
    if len({channel.source for channel in value.channels}) != captured.input_shape[1]:
        return "an input channel is not read: a weight of zero would still let its NaN and infinity through"
    return ""


def _fold(captured: CapturedGraph, node: fx.Node, conv: Convolution, value: _Value) -> None:
    weight = captured.constant(conv.weight)
    in_channels = captured.input_shape[1]
    assert in_channels is not None
    folded = weight.new_zeros(weight.shape[0], in_channels, *weight.shape[2:])
    shift = weight.new_zeros(weight.shape[0]) if conv.bias is None else captured.constant(conv.bias).clone()
    for position, channel in enumerate(value.channels):
        folded[:, channel.source] += weight[:, position] * channel.scale
        shift += weight[:, position].sum(dim=(1, 2)) * channel.shift
    path = node.meta.get("path") or node.name
    new_weight = captured.add_constant(f"{path}.weight", folded, before=node)
    new_bias = captured.add_constant(f"{path}.bias", shift, before=node)
    node.args = conv.args(input=captured.input_node, weight=new_weight, bias=new_bias)
    node.kwargs = {}
    add_folded(node, "input_normalization")
