"""Linear operations along the sides of a picture as products with constant matrices: what a resize is, whatever its filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.graph.ir import CapturedGraph, aten


def antialiased_resize(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """ONNX's own filter for these, which came late, is in few runtimes, and PyTorch's exporter leaves it out."""
    return as_products(captured, node)


def bicubic_resize(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """ONNX Runtime moves transpositions through a resize, and then refuses it: its bicubic one wants the sides last."""
    moved = (aten.permute.default, aten.transpose.int, aten.movedim.int, aten.movedim.intlist)
    return as_products(captured, node) if next(captured.calls(*moved), None) is not None else None


def nearest_resize(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """ONNX divides by a rounded ratio, and then takes the position before the right one: 1 / (4 / 28) is less than 7. Whole enlargements are exact.

    Others become a slice with a step, or the numbers of the positions.
    """
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    sizes, result = source.meta["shape"][2:], node.meta["shape"][2:]
    if None in sizes or None in result:
        return None
    positions = [_positions(node, sizes, axis) for axis in range(len(sizes))]
    repeated = [torch.arange(side).repeat_interleave(max(1, out // side)) for side, out in zip(sizes, result, strict=True)]
    if all(torch.equal(found, whole) for found, whole in zip(positions, repeated, strict=True)):
        return None
    value = source
    for axis, (side, index) in enumerate(zip(sizes, positions, strict=True)):
        if torch.equal(index, torch.arange(side)):
            continue
        shape = (*value.meta["shape"][: 2 + axis], len(index), *value.meta["shape"][3 + axis :])
        step = int(index[1]) if len(index) > 1 else side
        if step > 0 and torch.equal(index, torch.arange(0, side, step)):
            args: tuple[Any, ...] = (value, 2 + axis, 0, side, step)
            value = captured.call(aten.slice.Tensor, args, before=node, like=node, shape=shape)
        else:
            constant = captured.add_constant(f"{node.meta.get('path') or node.name}.positions", index, before=node)
            value = captured.call(aten.index_select.default, (value, 2 + axis, constant), before=node, like=node, shape=shape)
    return value


def _positions(node: fx.Node, sizes: Sequence[int], axis: int) -> Tensor:
    """[out] of one side: where each number comes from, as PyTorch's operation has it."""
    numbers = torch.arange(sizes[axis], dtype=torch.float64).view(*(-1 if other == axis else 1 for other in range(len(sizes))))
    target: Any = node.target
    taken = target(numbers.expand(1, 1, *sizes).contiguous(), *node.args[1:], **node.kwargs)[0, 0]
    return taken.movedim(axis, 0).reshape(taken.shape[axis], -1)[:, 0].long()


def as_products(captured: CapturedGraph, node: fx.Node) -> fx.Node | None:
    """A linear operation on [N, C, H, W] that works on each side apart and keeps constants, as M_h · x · M_wᵀ; None where a side is free."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    sizes, result = source.meta["shape"][2:], node.meta["shape"][2:]
    if None in sizes or None in result or len(sizes) != 2:
        return None
    height, width = (_matrix(node, sizes, axis) for axis in (0, 1))
    value = source
    for axis, matrix in sorted(((0, height), (1, width)), key=lambda side: side[1].shape[0] / side[1].shape[1]):
        if matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype)):
            continue
        value = multiplied(captured, value, matrix, axis, node)
    return value


def multiplied(captured: CapturedGraph, value: fx.Node, matrix: Tensor, axis: int, node: fx.Node) -> fx.Node:
    """`matrix` [out, in] times the rows (axis 0) or the columns (axis 1) of `value` [N, C, H, W], in front of `node`."""
    name = f"{node.meta.get('path') or node.name}.{'rows' if axis == 0 else 'columns'}"
    constant = captured.add_constant(name, (matrix if axis == 0 else matrix.T).contiguous().to(node.meta["dtype"]), before=node)
    shape = list(value.meta["shape"])
    shape[2 + axis] = len(matrix)
    factors = (constant, value) if axis == 0 else (value, constant)
    return captured.call(aten.matmul.default, factors, before=node, like=node, shape=tuple(shape))


def _matrix(node: fx.Node, sizes: tuple[int, int], axis: int) -> Tensor:
    """[out, in] float64 of one side: what the operation makes of pictures that are 1 in one row, or column, and 0 elsewhere."""
    count, target = sizes[axis], node.target
    basis = torch.eye(count, dtype=torch.float64)
    pictures = basis[:, None, :, None] if axis == 0 else basis[:, None, None, :]
    pictures = pictures.expand(count, 1, *sizes).contiguous()
    with torch.no_grad():
        result: Any = target(pictures, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return (result[:, 0, :, 0] if axis == 0 else result[:, 0, 0, :]).T
