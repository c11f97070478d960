"""Operations that ONNX, PyTorch's exporter or a runtime has no right form of, rewritten exactly in ones that all of them have.

Each rewriting needs the sizes of a picture; where they are free, as in a file for pictures of any size, the operation stays as it is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from fastcnn.export.padding_apart import keep_padding_apart
from fastcnn.export.products_apart import keep_products_apart
from fastcnn.export.standard_convolutions import convolution, transposed_convolution
from fastcnn.export.standard_pools import adaptive_average_pool, adaptive_max_pool, average_pool, max_pool
from fastcnn.export.standard_resizes import antialiased_resize, bicubic_resize, nearest_resize
from fastcnn.graph.ir import CapturedGraph, arguments, aten

# A call → the node that takes its place; None where it stays.
Rewriting = Callable[[CapturedGraph, fx.Node], fx.Node | None]


def in_standard_forms(captured: CapturedGraph) -> CapturedGraph:
    """A copy that computes the same."""
    captured = captured.copy()
    for node in captured.calls(*_REWRITINGS):
        replacement = _REWRITINGS[node.target](captured, node)
        if replacement is not None and replacement is not node:
            captured.replace(node, replacement)
    keep_padding_apart(captured)
    keep_products_apart(captured)
    captured.tidy()
    return captured


def _joined_clamp(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """A clamp of a clamp is a clamp: both runtimes' optimizers mistake one that is wholly below zero and a ReLU behind it."""
    inner = node.args[0]
    low, high = _BOUNDS[node.target](arguments(node))
    if not isinstance(inner, fx.Node) or inner.meta["dtype"] != node.meta["dtype"] or not node.meta["dtype"].is_floating_point:
        return None
    if inner.target not in _BOUNDS:
        # PyTorch's exporter takes no integer beside a fraction.
        return _clamp(captured, node, inner, low, high) if type(low) is not type(high) and node.target is aten.clamp.default else None
    first = _BOUNDS[inner.target](arguments(inner))
    return _clamp(captured, node, inner.args[0], *(min(max(bound, low), high) for bound in (min(first), first[1])))


def _clamp(captured: CapturedGraph, node: fx.Node, source: Any, low: float, high: float) -> fx.Node:
    bounds = [float(bound) if math.isfinite(bound) else None for bound in (low, high)]
    return captured.call(aten.clamp.default, (source, *bounds), before=node, like=node)


def _or(bound: Any, default: float) -> Any:
    return default if bound is None else bound


_BOUNDS: dict[Any, Callable[[dict[str, Any]], tuple[Any, Any]]] = {
    aten.relu.default: lambda values: (0.0, math.inf),
    aten.relu6.default: lambda values: (0.0, 6.0),
    aten.hardtanh.default: lambda values: (values["min_val"], values["max_val"]),
    aten.clamp.default: lambda values: (_or(values["min"], -math.inf), _or(values["max"], math.inf)),
    aten.clamp_min.default: lambda values: (values["min"], math.inf),
    aten.clamp_max.default: lambda values: (-math.inf, values["max"]),
}


def _mean_slope(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """In evaluation mode a randomized ReLU has the mean of its slopes (Xu et al., arXiv 1505.00853)."""
    values = arguments(node)
    if values["training"]:
        return None
    return captured.call(aten.leaky_relu.default, (values["self"], (values["lower"] + values["upper"]) / 2), before=node, like=node)


def _squeeze(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """Squeezing a size other than one does nothing, for PyTorch; ONNX calls it an error."""
    source: fx.Node = arguments(node)["self"]
    shape, axes = source.meta["shape"], arguments(node)["dim"]
    single = [axis for axis in ([axes] if isinstance(axes, int) else axes) if shape[axis] == 1]
    if any(shape[axis] is None for axis in ([axes] if isinstance(axes, int) else axes)):
        return None
    return captured.call(aten.squeeze.dims, (source, single), before=node, like=node) if single else source


def _circular_padding(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """The far edge in front and the near one behind: OpenVINO has no padding of this kind, and ONNX has it from opset 19."""
    values = arguments(node)
    source: fx.Node = values["self"]
    amounts = list(values["pad"])
    if values.get("mode", "circular") != "circular":
        return None
    value = source
    for axis in range(1, len(amounts) // 2 + 1):
        before, after = amounts[2 * axis - 2 : 2 * axis]
        dimension = len(source.meta["shape"]) - axis
        side = source.meta["shape"][dimension]
        if side is None:
            return None
        # What is cut off at one edge is not repeated at the other.
        value = _span(captured, node, value, dimension, max(0, -before), side - max(0, -after))
        side = value.meta["shape"][dimension]
        front = [_span(captured, node, value, dimension, side - before, side)] if before > 0 else []
        back = [_span(captured, node, value, dimension, 0, after)] if after > 0 else []
        if front or back:
            shape = (*value.meta["shape"][:dimension], side + max(0, before) + max(0, after), *value.meta["shape"][dimension + 1 :])
            value = captured.call(aten.cat.default, ([*front, value, *back], dimension), before=node, like=node, shape=shape)
    return value


def _span(captured: CapturedGraph, node: fx.Node, value: fx.Node, dimension: int, start: int, end: int) -> fx.Node:
    """Positions `start` to `end` of `value` along a dimension, in front of `node`."""
    shape = value.meta["shape"]
    if (start, end) == (0, shape[dimension]):
        return value
    shape = (*shape[:dimension], end - start, *shape[dimension + 1 :])
    return captured.call(aten.slice.Tensor, (value, dimension, start, end), before=node, like=node, shape=shape)


def _hypotenuse(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    squares = [captured.call(aten.mul.Tensor, (side, side), before=node, like=node, shape=side.meta["shape"]) for side in node.all_input_nodes]
    total = captured.call(aten.add.Tensor, (squares[0], squares[-1]), before=node, like=node)
    return captured.call(aten.sqrt.default, (total,), before=node, like=node)


def _log_sigmoid(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """-softplus(-x). PyTorch's exporter takes the logarithm of a sigmoid, which is that of 0 from -104 on, and of a clamped number before."""
    negative = captured.call(aten.neg.default, (node.args[0],), before=node, like=node)
    positive = captured.call(aten.softplus.default, (negative,), before=node, like=node)
    return captured.call(aten.neg.default, (positive,), before=node, like=node)


def _log_add_exp(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """max(a, b) + softplus(-|a - b|): the exporter's exponentials overflow from 89 on."""
    one, other = node.args[:2]
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return None
    largest = captured.call(aten.maximum.default, (one, other), before=node, like=node)
    apart = captured.call(aten.sub.Tensor, (one, other), before=node, like=node)
    distance = captured.call(aten.abs.default, (apart,), before=node, like=node)
    negative = captured.call(aten.neg.default, (distance,), before=node, like=node)
    rest = captured.call(aten.softplus.default, (negative,), before=node, like=node)
    return captured.call(aten.add.Tensor, (largest, rest), before=node, like=node)


def _log_sum_exp(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """Less its maximum, as PyTorch computes it; the exporter hands the axes on in a form that OpenVINO does not take."""
    values = arguments(node)
    source, axes = values["self"], list(values["dim"])
    shape = list(source.meta["shape"])
    for axis in axes:
        shape[axis] = 1
    kept = tuple(shape)
    largest = captured.call(aten.amax.default, (source, axes, True), before=node, like=node, shape=kept)
    smaller = captured.call(aten.sub.Tensor, (source, largest), before=node, like=node, shape=source.meta["shape"])
    exponentials = captured.call(aten.exp.default, (smaller,), before=node, like=smaller)
    total = captured.call(aten.sum.dim_IntList, (exponentials, axes, True), before=node, like=largest)
    logarithm = captured.call(aten.log.default, (total,), before=node, like=largest)
    result = captured.call(aten.add.Tensor, (logarithm, largest), before=node, like=largest)
    return result if values["keepdim"] else captured.call(aten.squeeze.dims, (result, axes), before=node, like=node)


def _median(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """The lower one of the two in the middle, as PyTorch has it; where the index is read too, it stays."""
    values = arguments(node)
    value = next((reader for reader in node.users if reader.target is operator.getitem and reader.args[1] == 0), None)
    size = values["self"].meta["shape"][values["dim"]]
    if value is None or len(node.users) > 1 or size is None:
        return None
    ordered = captured.call(aten.sort.default, (values["self"], values["dim"]), before=node, like=value)
    first = captured.call(operator.getitem, (ordered, 0), before=node, like=value, shape=values["self"].meta["shape"])
    middle = (size - 1) // 2
    part = (
        captured.call(aten.slice.Tensor, (first, values["dim"], middle, middle + 1), before=node, like=value)
        if values["keepdim"]
        else captured.call(aten.select.int, (first, values["dim"], middle), before=node, like=value)
    )
    captured.replace(value, part)
    return None


def _attention(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """PyTorch's exporter takes attention with heads only: one head."""
    values = arguments(node)
    sides: list[fx.Node] = [values[name] for name in ("query", "key", "value")]
    if any(len(side.meta["shape"]) != 3 for side in sides) or values["attn_mask"] is not None:
        return None

    def with_a_head(value: fx.Node) -> fx.Node:
        first, *others = value.meta["shape"]
        return captured.call(aten.unsqueeze.default, (value, 1), before=node, like=value, shape=(first, 1, *others))

    first, *others = node.meta["shape"]
    args = (*map(with_a_head, sides), *node.args[3:])
    headed = captured.call(aten.scaled_dot_product_attention.default, args, before=node, like=node, shape=(first, 1, *others))
    headed.kwargs = node.kwargs
    return captured.call(aten.squeeze.dims, (headed, [1]), before=node, like=node)


_NEAREST = (
    *(aten.upsample_nearest1d.vec, aten.upsample_nearest1d.default, aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact1d.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact2d.default),
    *(aten.upsample_nearest3d.vec, aten.upsample_nearest3d.default, aten._upsample_nearest_exact3d.vec, aten._upsample_nearest_exact3d.default),
)

_REWRITINGS: dict[Any, Rewriting] = {
    aten.pad.default: _circular_padding,
    aten._pad_circular.default: _circular_padding,
    aten.scaled_dot_product_attention.default: _attention,
    aten.hypot.default: _hypotenuse,
    aten.logsumexp.default: _log_sum_exp,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.logaddexp.default: _log_add_exp,
    aten.median.dim: _median,
    **dict.fromkeys(_BOUNDS, _joined_clamp),
    aten.rrelu.default: _mean_slope,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.conv1d.default: convolution,
    aten.conv2d.default: convolution,
    aten.conv_transpose2d.input: transposed_convolution,
    aten.avg_pool1d.default: average_pool,
    aten.avg_pool2d.default: average_pool,
    aten.max_pool1d.default: max_pool,
    aten.max_pool2d.default: max_pool,
    aten.adaptive_avg_pool1d.default: adaptive_average_pool,
    aten.adaptive_avg_pool2d.default: adaptive_average_pool,
    aten._adaptive_avg_pool2d.default: adaptive_average_pool,
    aten.adaptive_max_pool1d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.upsample_bicubic2d.vec: bicubic_resize,
    aten.upsample_bicubic2d.default: bicubic_resize,
    aten._upsample_bilinear2d_aa.vec: antialiased_resize,
    aten._upsample_bilinear2d_aa.default: antialiased_resize,
    aten._upsample_bicubic2d_aa.vec: antialiased_resize,
    aten._upsample_bicubic2d_aa.default: antialiased_resize,
    **dict.fromkeys(_NEAREST, nearest_resize),
}
