"""The layer table of a model: what `fastcnn info` prints.

Laid out as in the lecture "Modern CNNs" (2023): layer, kernel, input and output shape, parameters, mult-adds. Two conventions come
from there. The mult-adds of a convolution are its parameters, bias included, times output positions; those of a linear layer are its
parameters. BatchNorm has none here: at inference it is part of the convolution before it. And activation memory counts the outputs of
layers with parameters twice, for the value and its gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Shape = tuple[int, ...]


@dataclass
class LayerRow:
    """One call of one module.

    Attributes:
        name: path of the module; empty for the model itself.
        type: its class.
        depth: 0 for the model itself.
        index: its place among the calls at this depth, from 1.
        kernel: (height, width) of a convolution or a pool with a fixed window, else None.
        input_shape, output_shape: of its first tensor, batch included; empty where it has none.
        parameters: those that it holds itself, not through a child; counted at its first call only.
        mult_adds: multiply-adds of this call; see above.
        is_leaf: it has no children.
    """

    name: str
    type: str
    depth: int
    index: int
    kernel: tuple[int, int] | None
    input_shape: Shape
    output_shape: Shape
    parameters: int
    mult_adds: int
    is_leaf: bool


@dataclass(frozen=True)
class LayerTotals:
    """What the rows come to.

    Attributes:
        parameters: of the whole model.
        trainable: those of them that require a gradient.
        not_run: those of them that this run did not use, e.g. of auxiliary heads in eval mode.
        mult_adds: sum over the rows.
        input_mb, activation_mb, parameter_mb, total_mb: memory in units of 10^6 bytes.
    """

    parameters: int
    trainable: int
    not_run: int
    mult_adds: int
    input_mb: float
    activation_mb: float
    parameter_mb: float
    total_mb: float


@dataclass(frozen=True)
class LayerTable:
    """One row per call of a module, in execution order, and totals."""

    rows: tuple[LayerRow, ...]
    totals: LayerTotals


def layer_table(model: nn.Module, input_size: Sequence[int], batch_size: int = 1) -> LayerTable:
    """Runs `model` once, in the mode it is in, on an input of shape (batch_size, *input_size), and notes every module call.

    Nothing is computed where the model can run on the meta device; otherwise it runs on zeros on its own device. The model is left as it
    was. Auxiliary heads have rows in training mode only. Raises what the model raises for an input that it does not take, e.g. InputError.
    """
    shape = (batch_size, *input_size)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    like = next((tensor for tensor in parameters.values() if tensor.is_floating_point()), torch.empty(0))
    try:
        on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in (parameters | buffers).items()}
        rows = _run(model, on_meta, torch.empty(shape, dtype=like.dtype, device="meta"))
    except (NotImplementedError, RuntimeError):  # e.g. an operator without a meta implementation
        copies = {name: buffer.clone() for name, buffer in buffers.items()}  # training mode writes running statistics
        rows = _run(model, copies, torch.zeros(shape, dtype=like.dtype, device=like.device))

    in_all = sum(parameter.numel() for parameter in parameters.values())
    input_mb = prod(shape) * like.element_size() / 1e6
    activation_mb = 2 * sum(prod(row.output_shape) for row in rows if row.parameters) * like.element_size() / 1e6
    parameter_mb = sum(parameter.nbytes for parameter in parameters.values()) / 1e6
    totals = LayerTotals(
        parameters=in_all,
        trainable=sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad),
        not_run=in_all - sum(row.parameters for row in rows),
        mult_adds=sum(row.mult_adds for row in rows),
        input_mb=input_mb,
        activation_mb=activation_mb,
        parameter_mb=parameter_mb,
        total_mb=input_mb + activation_mb + parameter_mb,
    )
    return LayerTable(tuple(rows), totals)


def _run(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> list[LayerRow]:
    rows: list[LayerRow] = []
    with _noting_calls(model, rows), torch.no_grad():
        functional_call(model, dict(tensors), (x,))
    return rows


@contextmanager
def _noting_calls(model: nn.Module, rows: list[LayerRow]) -> Iterator[None]:
    """While active, every call of a module of `model` appends a row."""
    names = {module: name for name, module in model.named_modules()}
    calls_at_depth: Counter[int] = Counter()
    seen: set[nn.Module] = set()
    open_rows: list[LayerRow] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        name = names[module]
        depth = len(open_rows)
        calls_at_depth[depth] += 1
        parameters = 0 if module in seen else sum(parameter.numel() for parameter in module.parameters(recurse=False))
        seen.add(module)
        is_leaf = next(module.children(), None) is None
        row = LayerRow(name, type(module).__name__, depth, calls_at_depth[depth], _kernel(module), _shape(args), (), parameters, 0, is_leaf)
        rows.append(row)
        open_rows.append(row)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        row = open_rows.pop()
        row.output_shape = _shape(output)
        row.mult_adds = _mult_adds(module, row.output_shape)

    handles = []
    try:
        for module in names:
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kernel(module: nn.Module) -> tuple[int, int] | None:
    size = getattr(module, "kernel_size", None)
    if isinstance(size, int):
        return (size, size)
    return size if isinstance(size, tuple) and len(size) == 2 else None


def _mult_adds(module: nn.Module, output_shape: Shape) -> int:
    """Parameters × batch × output positions; positions are the dimensions that neither batch nor channels are."""
    parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if isinstance(module, nn.Conv2d):
        return parameters * output_shape[0] * prod(output_shape[2:])
    if isinstance(module, nn.Linear):
        return parameters * prod(output_shape[:-1])
    return 0


def _shape(value: Any) -> Shape:
    """The shape of the first tensor in a value, however nested."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((shape for shape in map(_shape, value) if shape), ())
    return ()
