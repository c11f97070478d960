"""Products with a constant matrix that OpenVINO must not join with the work on channels behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from fastcnn.graph.ir import CapturedGraph, arguments, aten

_ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_BY_CHANNEL = (aten.batch_norm.default, aten.prelu.default, aten._prelu_kernel.default)
_RESHAPES = (
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int),
    *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
)


def keep_products_apart(captured: CapturedGraph) -> None:
    """In place: OpenVINO's CPU plugin takes what follows such a product to work along the last axis, whichever it works along, and refuses the
    network without a word, or computes something else. Of rank 4 and more, it was seen.

    It keeps its hands off a product whose constant stands in front: x·W = (Wᵀ·xᵀ)ᵀ.
    """
    for product in captured.calls(aten.matmul.default, aten.linear.default):
        source, factor = product.args[:2]
        if not isinstance(source, fx.Node) or not isinstance(factor, fx.Node) or not _is_fixed(factor):
            continue
        rank = len(product.meta["shape"])
        if rank < 3 or len(factor.meta["shape"]) != 2 or not any(_is_by_channel(*read) for read in _readers(product)):
            continue
        if product.target is aten.matmul.default:
            factor = _transposed(captured, factor, product)
        columns = captured.call(aten.transpose.int, (source, -1, -2), before=product, like=source, shape=_turned(source))
        multiplied = captured.call(aten.matmul.default, (factor, columns), before=product, like=product, shape=_turned(product))
        rows = captured.call(aten.transpose.int, (multiplied, -1, -2), before=product, like=product)
        bias = arguments(product).get("bias")
        captured.replace(product, rows if bias is None else captured.call(aten.add.Tensor, (rows, bias), before=product, like=product))


def _is_fixed(node: fx.Node) -> bool:
    """Whether a value is the same for all inputs, which OpenVINO makes a constant of."""
    return node.op == "get_attr" or (node.op == "call_function" and all(map(_is_fixed, node.all_input_nodes)))


def _transposed(captured: CapturedGraph, factor: fx.Node, product: fx.Node) -> fx.Node:
    if captured.is_constant(factor):
        turned = captured.raw_constant(factor).T.contiguous()
        return captured.add_constant(f"{factor.meta['constant']}.transposed", turned, before=product)
    return captured.call(aten.transpose.int, (factor, -1, -2), before=product, like=factor, shape=_turned(factor))


def _turned(node: fx.Node) -> tuple[int | None, ...]:
    *others, rows, columns = node.meta["shape"]
    return (*others, columns, rows)


def _readers(product: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of a value and what reads it, from the product on through what a factor for each channel may be moved through: work on each number by
    itself, reshapes, products with a constant in front."""
    waiting = [product]
    while waiting:
        value = waiting.pop()
        for reader in value.users:
            yield reader, value
            plain = len(reader.all_input_nodes) == 1 and reader.meta.get("shape") == value.meta["shape"]
            behind = reader.target is aten.matmul.default and reader.args[1] is value and _is_fixed(reader.args[0])  # type: ignore[arg-type]
            if plain or behind or reader.target in _RESHAPES:
                waiting.append(reader)


def _is_by_channel(reader: fx.Node, value: fx.Node) -> bool:
    """Whether the reader does to a value of rank 4 and more what depends on another axis than the last."""
    if len(value.meta["shape"]) < 4:
        return False
    if reader.target in _ARITHMETIC:
        others = (node.meta["shape"] for node in reader.all_input_nodes if node is not value)
        return any(None not in other and math.prod(other[:-1]) > 1 for other in others)
    return reader.target in _BY_CHANNEL
