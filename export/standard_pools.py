"""Pools whose windows are not all alike, or reach beyond the picture, in ones that are and do not."""

from __future__ import annotations

import math
import operator
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from fastcnn.export.standard_resizes import as_products
from fastcnn.graph.ir import CapturedGraph, arguments, aten

_ADAPTIVE_AVERAGES = {3: aten.adaptive_avg_pool1d.default, 4: aten.adaptive_avg_pool2d.default}
_AVERAGES, _MAXIMA = {3: aten.avg_pool1d.default, 4: aten.avg_pool2d.default}, {3: aten.max_pool1d.default, 4: aten.max_pool2d.default}


def _each(value: int | list[int], rank: int) -> tuple[int, ...]:
    """ATen's spelling of a size: one number stands for all sides."""
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple(numbers * rank if len(numbers) == 1 else numbers)


def average_pool(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """A pool that pads and divides by what it counts, as zeros around the picture, a plain pool, and a factor for each position."""
    values = arguments(node)
    source: fx.Node = values["self"]
    sizes, result = source.meta["shape"][2:], node.meta["shape"][2:]
    rank = len(sizes)
    if rank + 2 not in _AVERAGES or None in sizes or None in result:
        return None
    kernel, padding = _each(values["kernel_size"], rank), _each(values["padding"], rank)
    stride = _each(values["stride"], rank) if values["stride"] else kernel
    divisor, counts_padding = values.get("divisor_override"), values["count_include_pad"]
    reaches = [(out - 1) * step + size for out, step, size in zip(result, stride, kernel, strict=True)]
    ends = [max(0, reach - before - side) for reach, before, side in zip(reaches, padding, sizes, strict=True)]
    beyond = [end > before for end, before in zip(ends, padding, strict=True)]
    if divisor is None and not any(beyond):
        return _without_ceil(captured, node, _AVERAGES) if values["ceil_mode"] else None
    edges = [amount for before, end in reversed(list(zip(padding, ends, strict=True))) for amount in (before, end)]
    padded = source
    if any(edges):
        shape = (*source.meta["shape"][:2], *(side + before + end for side, before, end in zip(sizes, padding, ends, strict=True)))
        padded = captured.call(aten.pad.default, (source, edges), before=node, like=node, shape=shape)
    pooled = captured.call(_AVERAGES[rank + 2], (padded, list(kernel), list(stride)), before=node, like=node)
    factors = torch.ones((), dtype=torch.float64)
    for axis in range(rank):
        windows = _counted(axis, sizes, result, kernel, stride, padding, counts_padding)
        counted = [kernel[axis] / (count if divisor is None else 1) for count in windows]
        factors = factors * torch.tensor(counted, dtype=torch.float64).reshape(-1, *[1] * (rank - 1 - axis))
    factors = factors / (divisor or 1)
    factor = float(factors.flatten()[0])
    if bool((factors == factor).all()):
        return pooled if factor == 1 else captured.call(aten.mul.Tensor, (pooled, factor), before=node, like=node)
    constant = captured.add_constant(f"{node.meta.get('path') or node.name}.share", factors.to(node.meta["dtype"]), before=node)
    return captured.call(aten.mul.Tensor, (pooled, constant), before=node, like=node)


def _counted(
    axis: int, sizes: Any, result: Any, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], counts_padding: bool
) -> list[int]:
    """How many positions each window counts along an axis: those of the padding too where it is counted, never those beyond it."""
    first, last = (-padding[axis], sizes[axis] + padding[axis]) if counts_padding else (0, sizes[axis])
    starts = [index * stride[axis] - padding[axis] for index in range(result[axis])]
    return [min(start + kernel[axis], last) - max(start, first) for start in starts]


def max_pool(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """Ceil mode that adds no window is none."""
    values = arguments(node)
    return _without_ceil(captured, node, _MAXIMA) if values["ceil_mode"] else None


def _without_ceil(captured: CapturedGraph, node: fx.Node, pools: dict[int, Any]) -> fx.Node | None:
    values = arguments(node)
    sizes, result = values["self"].meta["shape"][2:], node.meta["shape"][2:]
    if None in sizes or None in result:
        return None
    rank = len(sizes)
    kernel, padding, dilation = (_each(values.get(name, 1), rank) for name in ("kernel_size", "padding", "dilation"))
    stride = _each(values["stride"], rank) if values["stride"] else kernel
    floors = tuple(
        (side + 2 * before - step_between * (size - 1) - 1) // step + 1
        for side, before, step_between, size, step in zip(sizes, padding, dilation, kernel, stride, strict=True)
    )
    if floors != tuple(result):
        return _padded_maximum(captured, node, kernel, stride, padding, dilation) if pools is _MAXIMA and max(dilation) > 1 else None
    changed = {**values, "ceil_mode": False}
    order = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return captured.call(node.target, tuple(changed[name] for name in order), before=node, like=node)  # type: ignore[arg-type]


def _padded_maximum(
    captured: CapturedGraph, node: fx.Node, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> fx.Node:
    """A dilated window may reach further beyond the picture than `spell_out_ceil_mode` can say: explicit padding with what no maximum takes."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    sizes, result = source.meta["shape"][2:], node.meta["shape"][2:]
    edges: list[int] = []
    for axis in reversed(range(len(sizes))):
        reach = (result[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        edges += [padding[axis], max(0, reach - sizes[axis] - padding[axis])]
    shape = (*source.meta["shape"][:2], *(side + edges[-2 * axis - 2] + edges[-2 * axis - 1] for axis, side in enumerate(sizes)))
    padded = captured.call(aten.pad.default, (source, edges, "constant", -math.inf), before=node, like=node, shape=shape)
    args = (padded, list(kernel), list(stride), [0] * len(sizes), list(dilation))
    return captured.call(_MAXIMA[len(sizes) + 2], args, before=node, like=node)


def spell_out_ceil_mode(graph: onnx.GraphProto) -> None:
    """The sizes of max pools in ceil mode as padding at their ends, in place: OpenVINO keeps last windows that PyTorch drops.

    A maximum does not see padding. Pools over free sides stay as they are.
    """
    shapes = {
        value.name: [size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "MaxPool" or "ceil_mode" not in attributes or attributes["ceil_mode"].i == 0:
            continue
        known = [[side for side in shapes.get(name, [])[2:] if side is not None] for name in (node.input[0], node.output[0])]
        sizes, result = known
        if not len(sizes) == len(result) == len(attributes["kernel_shape"].ints) or "pads" not in attributes:
            continue
        kernel, pads = list(attributes["kernel_shape"].ints), list(attributes["pads"].ints)
        strides, dilations = (list(attributes[name].ints) if name in attributes else [1] * len(kernel) for name in ("strides", "dilations"))
        for axis, (size, out) in enumerate(zip(sizes, result, strict=True)):
            window = dilations[axis] * (kernel[axis] - 1) + 1
            pads[axis + len(kernel)] = max(0, (out - 1) * strides[axis] + window - size - pads[axis])
        if any(pad >= size for pad, size in zip(pads, kernel * 2, strict=True)):
            continue  # ONNX Runtime wants less padding than window, dilated or not
        attributes["ceil_mode"].i = 0
        attributes["pads"].ints[:] = pads


def adaptive_average_pool(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """To a size that divides: a plain pool. To another: windows overlap and differ, a product with a constant matrix for each side."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    sizes, result = source.meta["shape"][2:], node.meta["shape"][2:]
    if None in sizes or None in result or all(out == 1 for out in result):
        return None
    rank = len(sizes)
    if all(side % out == 0 for side, out in zip(sizes, result, strict=True)):
        kernel = [side // out for side, out in zip(sizes, result, strict=True)]
        return captured.call(_AVERAGES[rank + 2], (source, kernel, kernel), before=node, like=node)
    if rank == 2:
        return as_products(captured, node)
    matrix = aten.adaptive_avg_pool1d.default(torch.eye(sizes[0], dtype=torch.float64)[None], list(result))[0]
    constant = captured.add_constant(f"{node.meta.get('path') or node.name}.windows", matrix.to(node.meta["dtype"]), before=node)
    return captured.call(aten.matmul.default, (source, constant), before=node, like=node)


def adaptive_max_pool(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """To a size that divides: a plain pool. To another: the positions of each window, the last repeated in the shorter ones, and their maximum."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    value = next((reader for reader in node.users if reader.target is operator.getitem and reader.args[1] == 0), None)
    if value is None or len(node.users) > 1:
        return None
    sizes, result = source.meta["shape"][2:], value.meta["shape"][2:]
    if None in sizes or None in result:
        return None
    rank = len(sizes)
    if all(side % out == 0 for side, out in zip(sizes, result, strict=True)):
        kernel = [side // out for side, out in zip(sizes, result, strict=True)]
        pooled = captured.call(_MAXIMA[rank + 2], (source, kernel, kernel), before=node, like=value)
    else:
        pooled = source
        for axis, (side, out) in enumerate(zip(sizes, result, strict=True)):
            if side != out:
                pooled = _largest_of_windows(captured, pooled, 2 + axis, _windows(side, out), value)
    captured.replace(value, pooled)
    return None


def _windows(side: int, out: int) -> Tensor:
    """[out, longest] positions: window i reaches from ⌊i·side/out⌋ to ⌈(i+1)·side/out⌉."""
    windows = [(index * side // out, -(-(index + 1) * side // out)) for index in range(out)]
    longest = max(end - start for start, end in windows)
    return torch.tensor([[min(start + offset, end - 1) for offset in range(longest)] for start, end in windows])


def _largest_of_windows(captured: CapturedGraph, source: fx.Node, axis: int, windows: Tensor, like: fx.Node) -> fx.Node:
    out, longest = windows.shape
    shape = list(source.meta["shape"])
    index = captured.add_constant(f"{like.meta.get('path') or like.name}.windows", windows.flatten(), before=like)
    spread = [*shape[:axis], out * longest, *shape[axis + 1 :]]
    taken = captured.call(aten.index_select.default, (source, axis, index), before=like, like=like, shape=tuple(spread))
    unfolded = (*shape[:axis], out, longest, *shape[axis + 1 :])
    apart = captured.call(aten.unflatten.int, (taken, axis, [out, longest]), before=like, like=like, shape=unfolded)
    return captured.call(aten.amax.default, (apart, [axis + 1]), before=like, like=like, shape=(*shape[:axis], out, *shape[axis + 1 :]))
