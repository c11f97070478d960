"""A captured model: a `torch.fx` graph of ATen operations, its constants, and how to edit both.

Constants are attributes of the graph module under names of our own; the name in the original state dict stands beside, in the node's metadata.

Passes compute with constants in float64 and leave them so; `cast_constants` rounds each one once, at the end of the road. Node metadata that passes
rely on:

========== =======================================================================================================
`shape`    output shape, `None` where it depends on the batch (or on another dynamic size)
`dtype`    output dtype
`path`     path of the module that made the node in the original model, for example `Mixed_5b.branch1x1.conv`
`folded`   what passes put into this node, in the order in which they did it
`argument` of each of several inputs: how the model calls it
`constant` of a node that reads a constant: its name in the original state dict, or the one that a pass gave it
`place`    the line of the model's code that called the operation, where capture knows it; it does not go into files
========== =======================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

Shape = tuple[int | None, ...]
aten = torch.ops.aten


@dataclass
class CapturedGraph:
    """What `capture` returns, what passes edit and what engines and exporters lower.

    `input_shape` and `input_dtype` are those of the first input; further ones say theirs in the metadata of `input_nodes`.
    `module` takes the inputs and returns a list: the flattened outputs of the model, which `output_spec` (a pytree in JSON) puts together again.
    Any batch runs. What it is to be lowered for stands beside it, in a `fastcnn.target.Target`.
    """

    module: fx.GraphModule
    input_shape: Shape
    input_dtype: torch.dtype
    output_spec: str
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The graph that `module` runs; edits show in `module` after `tidy`."""
        return self.module.graph

    @property
    def input_nodes(self) -> list[fx.Node]:
        """The placeholders of the inputs, [N, …] each, in the order of the model's arguments."""
        return self.graph.find_nodes(op="placeholder")

    @property
    def input_node(self) -> fx.Node:
        """The placeholder of the first input, [N, …], the only one of most models."""
        return next(node for node in self.graph.nodes if node.op == "placeholder")

    @property
    def output_nodes(self) -> list[fx.Node]:
        """The flattened outputs, in the order of the output structure."""
        (outputs,) = self.graph.output_node().args
        return list(outputs)  # type: ignore[arg-type]

    def copy(self) -> CapturedGraph:
        """A graph to edit; the constants are shared until an edit replaces them."""
        graph = fx.Graph()
        outputs = graph.graph_copy(self.graph, {})
        graph.output(outputs)
        return replace(self, module=fx.GraphModule(self.module, graph), info=dict(self.info))

    def calls(self, *targets: Callable[..., Any]) -> Iterator[fx.Node]:
        """Nodes that call one of `targets` (every call where none is named), in order; safe against edits while iterating."""
        for node in list(self.graph.nodes):
            if node.op == "call_function" and (not targets or node.target in targets) and not node._erased:
                yield node

    # -- constants -----------------------------------------------------------------------------------------------------

    def is_constant(self, value: object) -> bool:
        """Whether an argument reads a tensor that is part of the graph."""
        return isinstance(value, fx.Node) and value.op == "get_attr"

    def constant(self, node: fx.Node) -> Tensor:
        """The tensor behind a constant, in float64 where it is a floating-point one."""
        tensor = self.raw_constant(node)
        return tensor.double() if tensor.is_floating_point() else tensor

    def raw_constant(self, node: fx.Node) -> Tensor:
        """The tensor behind a constant as it is stored."""
        assert isinstance(node.target, str), node
        tensor: Tensor = getattr(self.module, node.target)
        return tensor.detach()

    def add_constant(self, name: str, tensor: Tensor, before: fx.Node) -> fx.Node:
        """Store `tensor` under `name` (made unique) and return a node that reads it, placed in front of `before`."""
        stem, attempt, taken = re.sub(r"\W", "_", name), 0, {other.meta["constant"] for other in self._constant_nodes()}
        while (unique := f"{stem}_{attempt}" if attempt else stem) in taken:
            attempt += 1
        attribute = attribute_for(unique, vars(self.module)["_buffers"])
        self.module.register_buffer(attribute, tensor)
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(attribute)
        node.meta.update(shape=tuple(tensor.shape), dtype=tensor.dtype, path=name, constant=unique)
        return node

    def _constant_nodes(self) -> Iterator[fx.Node]:
        return (node for node in self.graph.nodes if node.op == "get_attr")

    def constants(self) -> dict[str, Tensor]:
        """Name → tensor of every constant that the graph reads."""
        return {node.meta["constant"]: self.raw_constant(node) for node in self._constant_nodes()}

    def set_constant(self, name: str, tensor: Tensor) -> None:
        """Put `tensor` in the place of the constant `name`."""
        attribute = next(str(node.target) for node in self._constant_nodes() if node.meta["constant"] == name)
        self.module.register_buffer(attribute, tensor)

    # -- edits ---------------------------------------------------------------------------------------------------------

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], *, before: fx.Node, like: fx.Node, shape: Shape | None = None) -> fx.Node:
        """Insert a call in front of `before`; path, dtype and (unless given) shape are those of `like`."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        node.meta.update(shape=like.meta["shape"] if shape is None else shape, dtype=like.meta["dtype"], path=like.meta.get("path", ""))
        node.meta["folded"] = like.meta.get("folded", ())
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give every reader of `old` the value of `new`, and drop `old`."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def tidy(self) -> None:
        """Drop calls and constants that nothing reads, and rebuild the module's code."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        # A new module around the same graph takes along only the attributes that the graph reads.
        self.module = fx.GraphModule(self.module, self.graph)

    def cast_constants(self, dtype: torch.dtype, *, copy: bool = True) -> None:
        """Round every floating-point constant to `dtype`: the only rounding between the original weights and the fused ones.

        Constants are copied even where no rounding is needed, so that nothing is shared with the model that was captured; with `copy` False those
        that are in `dtype` already stay shared with the graph that this one was made from.
        """
        self._convert_integers(dtype)
        root = nn.Module()
        for attribute in {str(node.target): None for node in self._constant_nodes()}:
            tensor = getattr(self.module, attribute).detach()
            root.register_buffer(attribute, tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=copy))
        for node in self.graph.nodes:
            if node.op == "get_attr":
                node.meta["dtype"] = dtype if node.meta["dtype"].is_floating_point else node.meta["dtype"]
            elif "dtype" in node.meta and node.meta["dtype"] is not None and node.meta["dtype"].is_floating_point:
                node.meta["dtype"] = dtype
        self.module = fx.GraphModule(root, self.graph)
        self.input_dtype = dtype if self.input_dtype.is_floating_point else self.input_dtype

    def _convert_integers(self, dtype: torch.dtype) -> None:
        """What makes real numbers of integers, such as pixels, makes them in `dtype`."""
        for node in self.calls():
            made = node.meta.get("dtype")
            sources = [source.meta.get("dtype") for source in node.all_input_nodes]
            if made is None or not made.is_floating_point or made == dtype or not sources or None in sources:
                continue
            if any(source is not None and source.is_floating_point for source in sources):
                continue
            if node.target is aten.to.dtype:
                node.args = (node.args[0], dtype, *node.args[2:])
                continue
            readers = list(node.users)
            with self.graph.inserting_after(node):
                converted = self.graph.call_function(aten.to.dtype, (node, dtype))
            converted.meta.update(node.meta)
            for reader in readers:
                reader.replace_input_with(node, converted)


def attribute_for(name: str, taken: Container[str]) -> str:
    """A name of ours for the attribute that holds the constant `name`: an identifier, no keyword, no attribute of a module, not `taken`."""
    stem, attempt = "constant_" + re.sub(r"\W", "_", name, flags=re.ASCII), 0
    while (attribute := f"{stem}_{attempt}" if attempt else stem) in taken:
        attempt += 1
    return attribute


def add_folded(node: fx.Node, *what: str) -> None:
    """Note on `node` what a pass put into it."""
    node.meta["folded"] = (*node.meta.get("folded", ()), *what)


def only_user(node: fx.Node) -> fx.Node | None:
    """The single reader of `node`, or None where it has several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an ATen call by its schema name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload), node
    values = dict(node.kwargs)
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            values[argument.name] = node.args[position]
        elif argument.name not in values:
            values[argument.name] = argument.default_value if argument.has_default_value() else None
    return values


def pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """ATen's spelling of a two-dimensional size: one number stands for both."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


@dataclass(frozen=True)
class Convolution:
    """The arguments of an `aten.conv2d` or `fused_conv2d` call, sizes as pairs."""

    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, node: fx.Node) -> Convolution:
        """The arguments of `node`, trailing defaults filled in."""
        # The first seven arguments of a fused convolution are those of a plain one.
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        values: dict[str, Any] = arguments(node) if isinstance(node.target, torch._ops.OpOverload) else dict(zip(names, node.args, strict=False))
        return cls(
            values["input"],
            values["weight"],
            values["bias"],
            pair(values["stride"]),
            pair(values["padding"]),
            pair(values["dilation"]),
            values["groups"],
        )

    @property
    def kernel(self) -> tuple[int, int]:
        """(height, width) of the window."""
        return self.weight.meta["shape"][2], self.weight.meta["shape"][3]

    @property
    def is_projection(self) -> bool:
        """1×1, stride 1, no padding, one group: a matrix product over the channels of each pixel."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1

    def args(self, **changes: Any) -> tuple[Any, ...]:
        """Positional arguments for `aten.conv2d`, some of them changed."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        values = [changes.get(name, getattr(self, name)) for name in names]
        return tuple(list(value) if isinstance(value, tuple) else value for value in values)
