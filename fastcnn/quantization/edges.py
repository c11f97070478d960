"""Which values of a graph are rounded to 8 bits, and which of them must share their scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from fastcnn.errors import RequestError
from fastcnn.graph.ir import CapturedGraph, arguments, aten

LAYERS = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default)
# Their output holds numbers of their input and no others: one grid serves both.
_SAME_NUMBERS = (
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.contiguous.default,
    aten.squeeze.dims,
    aten.permute.default,
    aten.transpose.int,
)
# Means of their input, which spread less far: a grid of their own.
_AVERAGES = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim)
# What a runtime computes together with the layer in front of it: its result is rounded, not what goes into it.
CLAMPS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with constant weights.

    Attributes:
        name: the module's path, the same in every copy of the graph and in no other layer of it.
        weight_only: its input stays float: with one pixel per picture, rounding it gains nothing.
        operations: multiply-adds per picture.
    """

    name: str
    node: fx.Node
    weight_only: bool
    operations: int

    @property
    def input(self) -> fx.Node:
        """The activation that it reads."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source

    @property
    def weight(self) -> fx.Node:
        """The constant that it multiplies with, output channels first."""
        weight = self.node.args[1]
        assert isinstance(weight, fx.Node)
        return weight


@dataclass
class Edges:
    """What is rounded.

    Attributes:
        layers: those whose weights are rounded.
        values: activations that are rounded, each once, in the order of the graph.
        readers: for each of them the calls that read it rounded; all others read it as it was.
    """

    layers: list[Layer]
    values: list[fx.Node]
    readers: dict[fx.Node, list[fx.Node]]
    _same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _linked: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)

    def groups(self) -> list[list[fx.Node]]:
        """Values with one grid: a concat and its members, a max pool and its input."""
        return _classes(self.values, self._same)

    def scales(self) -> list[list[list[fx.Node]]]:
        """Groups with one scale, whose zero points may differ: the two sides of a residual add."""
        groups = self.groups()
        heads = {group[0]: group for group in groups}
        head_of = {node: group[0] for group in groups for node in group}
        joined: dict[fx.Node, fx.Node] = {}
        for node, other in self._linked:
            if node in head_of and other in head_of:
                _join(joined, head_of[node], head_of[other])
        return [[heads[head] for head in members] for members in _classes(list(heads), joined)]


def find_layers(captured: CapturedGraph) -> list[Layer]:
    """Every convolution and linear layer that can be rounded, in order. Raises RequestError where there is none."""
    taken: Counter[str] = Counter()
    layers = []
    for node in captured.calls(*LAYERS):
        values = arguments(node)
        bias = values["bias"]
        if not captured.is_constant(values["weight"]) or not (bias is None or captured.is_constant(bias)):
            continue
        path = node.meta.get("path") or node.name
        taken[path] += 1
        name = path if taken[path] == 1 else f"{path}#{taken[path]}"
        pixels = node.meta["shape"][2:] if node.target is not aten.linear.default else node.meta["shape"][1:-1]
        size = math.prod(side for side in pixels if side is not None)
        one_pixel = node.target is not aten.linear.default and all(side == 1 for side in node.args[0].meta["shape"][2:])  # type: ignore[union-attr]
        layers.append(Layer(name, node, one_pixel, size * math.prod(values["weight"].meta["shape"])))
    if not layers:
        raise RequestError(f"{captured.info['name']} has no convolution or linear layer with constant weights: there is nothing for int8 to do")
    return layers


def find_edges(captured: CapturedGraph, float_layers: Collection[str] = ()) -> Edges:
    """What to round of `captured`, the layers named in `float_layers` left as they are.

    A value is rounded where a rounded layer reads it, and where a runtime can go on in 8 bits to there: through pools, concats and additions.
    """
    layers = [layer for layer in find_layers(captured) if layer.name not in float_layers]
    edges = Edges(layers, [], {})
    waiting: list[tuple[fx.Node, fx.Node]] = [(layer.input, layer.node) for layer in layers if not layer.weight_only]
    while waiting:
        value, reader = waiting.pop()
        if not _is_float(value) or captured.is_constant(value):
            continue
        known = value in edges.readers
        readers = edges.readers.setdefault(value, [])
        if reader not in readers:
            readers.append(reader)
        if not known:
            waiting.extend((source, consumer) for source, consumer in _continued(captured, edges, value))
    order = {node: number for number, node in enumerate(captured.graph.nodes)}
    edges.values = sorted(edges.readers, key=order.__getitem__)
    return edges


def _continued(captured: CapturedGraph, edges: Edges, value: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What must be rounded too for `value` to come out of a computation in 8 bits, and who reads it there."""
    producer = value
    while producer.target in CLAMPS and isinstance(producer.args[0], fx.Node) and len(producer.args[0].users) == 1:
        producer = producer.args[0]
    clamped = producer is not value
    if producer.target in _SAME_NUMBERS and not clamped:
        source = producer.args[0]  # a reshape reads sizes too
        assert isinstance(source, fx.Node)
        _join(edges._same, value, source)
        yield source, producer
    elif producer.target in _AVERAGES and not clamped:
        assert isinstance(producer.args[0], fx.Node)
        yield producer.args[0], producer
    elif producer.target is aten.cat.default and not clamped:
        for source in producer.all_input_nodes:
            if captured.is_constant(source) or not _is_float(source):
                return
        for source in producer.all_input_nodes:
            _join(edges._same, value, source)
            yield source, producer
    elif producer.target is aten.add.Tensor:
        sides = [side for side in producer.all_input_nodes if not captured.is_constant(side)]
        if len(sides) == 2 and sides[0].meta.get("shape") == sides[1].meta.get("shape") and arguments(producer)["alpha"] == 1:
            edges._linked.append((sides[0], sides[1]))
            yield from ((side, producer) for side in sides)


def _is_float(node: fx.Node) -> bool:
    return isinstance(node.meta.get("dtype"), torch.dtype) and node.meta["dtype"].is_floating_point


def _root(parents: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while (parent := parents.get(node, node)) is not node:
        node = parent
    return node


def _join(parents: dict[fx.Node, fx.Node], one: fx.Node, other: fx.Node) -> None:
    parents[_root(parents, one)] = _root(parents, other)


def _classes(nodes: list[fx.Node], parents: dict[fx.Node, fx.Node]) -> list[list[fx.Node]]:
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        found.setdefault(_root(parents, node), []).append(node)
    return list(found.values())
