"""The steps of a network: what one launch computes together, and which values it reads and writes.

An activation is a value of shape [N, C, H, W] with C, H and W known. `matching.build_network` finds the steps in a
graph.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from fastcnn.graph.ir import CapturedGraph, Convolution


@dataclass(frozen=True)
class Piece:
    """Output channels start … stop of a convolution: the value of `node`."""

    node: fx.Node
    start: int
    stop: int


@dataclass(eq=False, kw_only=True)
class Step:
    """One row of the plan: it computes the values `writes` from the values `reads`. `node` gives it its name."""

    node: fx.Node
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]

    @property
    def path(self) -> str:
        """The module that it came from, or the node's name."""
        return self.node.meta.get("path") or self.node.name

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of what it computes."""
        return tuple(self.node.meta["shape"][1:])


@dataclass(eq=False, kw_only=True)
class ConvolutionStep(Step):
    """relu(conv2d(x) + bias + residual); `pieces` are more than one for merged siblings."""

    convolution: Convolution
    weight: Tensor = field(repr=False)  # [K, C, R, S]
    bias: Tensor | None = field(repr=False)
    residual: fx.Node | None
    relu: bool
    pieces: tuple[Piece, ...]


@dataclass(eq=False, kw_only=True)
class PoolStep(Step):
    """relu(pool(x) + bias), bias and ReLU optional."""

    reduction: str  # "max" or "avg"
    window: dict[str, Any]
    bias: Tensor | None = field(repr=False)
    relu: bool


@dataclass(eq=False, kw_only=True)
class GlobalPoolStep(Step):
    """The average over all pixels."""


@dataclass(eq=False, kw_only=True)
class AffineStep(Step):
    """relu(x·scale + shift), by channel: a BatchNorm that no convolution could take in."""

    scale: Tensor = field(repr=False)  # [C], float32
    shift: Tensor = field(repr=False)
    relu: bool


@dataclass(eq=False, kw_only=True)
class ConcatStep(Step):
    """The members side by side along the channels; nothing is launched for those that were written in place."""


@dataclass(eq=False, kw_only=True)
class AtenStep(Step):
    """PyTorch's own operation."""


@dataclass(frozen=True)
class Network:
    """A graph as steps.

    Attributes:
        steps: in an order in which they can run.
        views: values that are channels `start` … of another one: node → (base, start).
        per_picture: no operation mixes the pictures of a batch, so a batch may be filled up with others.
    """

    captured: CapturedGraph
    steps: tuple[Step, ...]
    views: dict[fx.Node, tuple[fx.Node, int]]
    per_picture: bool

    @property
    def convolutions(self) -> list[ConvolutionStep]:
        """Its convolutions, in the order of the steps."""
        return [step for step in self.steps if isinstance(step, ConvolutionStep)]

    @functools.cached_property
    def writers(self) -> dict[fx.Node, Step]:
        """The step that computes each value; none for the network's input, constants and views."""
        return {node: step for step in self.steps for node in step.writes}

    def base(self, node: fx.Node) -> fx.Node:
        """The value whose channels `node` shows; itself where it is no view."""
        while node in self.views:
            node = self.views[node][0]
        return node

    def sources(self, step: Step) -> list[Step]:
        """The steps whose results `step` reads."""
        return [self.writers[base] for base in map(self.base, step.reads) if base in self.writers]


def is_activation(node: object) -> bool:
    """Whether a value is [N, C, H, W] with C, H and W known."""
    shape = node.meta.get("shape") if isinstance(node, fx.Node) else None
    return shape is not None and len(shape) == 4 and None not in shape[1:]


def followers(step: Step) -> Iterator[str]:
    """What stands in a row of the plan as folded into it."""
    yield from step.node.meta.get("folded", ())
    if isinstance(step, PoolStep | AffineStep):
        if isinstance(step, PoolStep) and step.bias is not None:
            yield "bias"
        if step.relu:
            yield "relu"
    if isinstance(step, ConvolutionStep) and len(step.pieces) > 1:
        yield f"scattered to {len(step.pieces)}"
