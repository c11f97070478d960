"""Zeros around a picture that a runtime must not take for the padding of the pool behind them."""

from __future__ import annotations

from typing import Any

from torch import fx

from fastcnn.graph.ir import CapturedGraph, arguments, aten

_MAXIMA = (aten.max_pool1d.default, aten.max_pool2d.default)
_POOLS = (*_MAXIMA, aten.avg_pool1d.default, aten.avg_pool2d.default)
_NEVER_NEGATIVE = (aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.hardsigmoid.default)


def keep_padding_apart(captured: CapturedGraph) -> None:
    """In place: ONNX Runtime folds zeros into the pool behind them, though a maximum does not see padding, and then refuses pads as wide as a window.

    It does not look through an axis that is put in front and taken away again, which costs nothing.
    """
    for pool in captured.calls(*_POOLS):
        pad: fx.Node = pool.args[0]  # type: ignore[assignment]
        edges = _zeros(pad)
        if edges is None or _may_be_folded(pool, edges):
            continue
        source: fx.Node = pad.args[0]  # type: ignore[assignment]
        raised = captured.call(aten.unsqueeze.default, (source, 1), before=pool, like=source, shape=_raised(source))
        padded = captured.call(pad.target, (raised, *pad.args[1:]), before=pool, like=pad, shape=_raised(pad))  # type: ignore[arg-type]
        pool.replace_input_with(pad, captured.call(aten.squeeze.dims, (padded, [1]), before=pool, like=pad))


def _raised(node: fx.Node) -> tuple[int | None, ...]:
    first, *others = node.meta["shape"]
    return (first, 1, *others)


def _zeros(node: Any) -> list[int] | None:
    """How many zeros the node puts around, as `F.pad` takes them; None where it does something else."""
    if not isinstance(node, fx.Node) or node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return None
    values = arguments(node)
    if values.get("mode", "constant") != "constant" or values["value"]:
        return None
    return list(values["pad"])


def _may_be_folded(pool: fx.Node, edges: list[int]) -> bool:
    """Whether the pool gives the same with these zeros, and those that stand before them, as padding of its own."""
    values = arguments(pool)
    first, rank = pool.args[0].args[0], len(pool.meta["shape"]) - 2  # type: ignore[union-attr]
    edges = edges + [0] * (2 * rank - len(edges))
    while (more := _zeros(first)) is not None:
        edges = [edge + other for edge, other in zip(edges, more + [0] * (2 * rank), strict=False)]
        first = first.args[0]  # type: ignore[union-attr]
    if pool.target in _MAXIMA and getattr(first, "target", None) not in _NEVER_NEGATIVE:
        return False
    kernel, padding = (list(values[name]) * (rank if len(values[name]) == 1 else 1) for name in ("kernel_size", "padding"))
    return all(edges[2 * (rank - 1 - axis) + end] + padding[axis] < kernel[axis] for axis in range(rank) for end in (0, 1))
