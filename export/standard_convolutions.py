"""Convolutions that ONNX or a runtime has no right form of."""

from __future__ import annotations

from torch import fx

from fastcnn.graph.ir import CapturedGraph, arguments, aten, pair


def convolution(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """OpenVINO reads beyond the picture where a window lies wholly in the padding, explicit zeros or not: what such windows give is put behind."""
    values = arguments(node)
    source: fx.Node = values["input"]
    sides, result = source.meta["shape"][2:], node.meta["shape"][2:]
    rank = len(sides)
    stride, padding, dilation = (list(values[name]) * (rank if len(values[name]) == 1 else 1) for name in ("stride", "padding", "dilation"))
    windows = [step * (size - 1) + 1 for step, size in zip(dilation, values["weight"].meta["shape"][2:], strict=True)]
    if None in sides or None in result or all(before < window for before, window in zip(padding, windows, strict=True)):
        return None
    inner, outer, kept = list[int](), list[int](), list[int]()
    for side, out, step, before, window in reversed(list(zip(sides, result, stride, padding, windows, strict=True))):
        # So many windows lie wholly in the padding in front, and then there are those that see the picture.
        empty = max(0, -(-(before - window + 1) // step))
        front, back = before - empty * step, min(before, window - 1)
        if -front >= side:
            return None  # a stride over the whole picture: no window sees anything of it
        seeing = (side + front + back - window) // step + 1
        inner += [front, back]
        outer += [empty, out - empty - seeing]
        kept.insert(0, seeing)
    padded = source
    if any(inner):
        around = (side + inner[-2 * axis - 2] + inner[-2 * axis - 1] for axis, side in enumerate(sides))
        padded = captured.call(aten.pad.default, (source, inner), before=node, like=source, shape=(*source.meta["shape"][:2], *around))
    args = (padded, values["weight"], None, stride, [0] * rank, dilation, values["groups"])
    seen = captured.call(node.target, args, before=node, like=node, shape=(*node.meta["shape"][:2], *kept))  # type: ignore[arg-type]
    whole = captured.call(aten.pad.default, (seen, outer), before=node, like=node)
    return _with_bias(captured, node, whole, values["bias"])


def transposed_convolution(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """ONNX takes no output padding as large as the stride: crop, or pad, the whole result instead, and add the bias behind."""
    values = arguments(node)
    stride, padding, extra, dilation = (pair(values[name]) for name in ("stride", "padding", "output_padding", "dilation"))
    if all(more < step for more, step in zip(extra, stride, strict=True)):
        return None
    source: fx.Node = values["input"]
    whole = captured.call(
        aten.conv_transpose2d.input,
        (source, values["weight"], None, list(stride), [0, 0], [0, 0], values["groups"], list(dilation)),
        before=node,
        like=node,
        shape=(*node.meta["shape"][:2], None, None),
    )
    edges = [-padding[1], extra[1] - padding[1], -padding[0], extra[0] - padding[0]]
    cut = captured.call(aten.pad.default, (whole, edges), before=node, like=node)
    return _with_bias(captured, node, cut, values["bias"])


def _with_bias(captured: CapturedGraph, node: fx.Node, value: fx.Node, bias: fx.Node | None) -> fx.Node:
    if bias is None:
        return value
    channels, rank = bias.meta["shape"][0], len(node.meta["shape"]) - 2
    column = captured.call(aten.reshape.default, (bias, [-1, *[1] * rank]), before=node, like=node, shape=(channels, *[1] * rank))
    return captured.call(aten.add.Tensor, (value, column), before=node, like=node)
