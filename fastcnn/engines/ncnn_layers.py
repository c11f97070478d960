"""The layers of a network of ncnn as the text and the bytes that it reads, and which values of a graph are blobs.

How text and bytes are laid out stands in ncnn's docs/developer-guide/param-and-model-file-structure.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.errors import BackendError
from fastcnn.graph.plan import op_name

_MAGIC = 7767517
# In front of weights that could be stored in another type.
_IS_FLOAT32 = bytes(4)

Parameter = int | float | Sequence[int] | Sequence[float]


@dataclass
class Layer:
    """One layer: its kind, blobs, parameters by number, weights, and for the plan the node that it computes with what is folded into it."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, Parameter]
    weights: list[tuple[Tensor, bool]] = field(default_factory=list)  # the second: whether a mark of the type comes first
    node: fx.Node | None = None
    folded: tuple[str, ...] = ()
    activation: str = ""

    def line(self, name: str) -> str:
        """The layer as ncnn reads it."""
        parameters = [
            f"{number}={_number(value)}" if isinstance(value, int | float) else f"{-23300 - number}={len(value)},{','.join(map(_number, value))}"
            for number, value in self.parameters.items()
        ]
        return " ".join([self.kind, name, str(len(self.inputs)), str(len(self.outputs)), *self.inputs, *self.outputs, *parameters])

    def bytes(self) -> Iterator[bytes | memoryview]:
        """Its weights as ncnn reads them."""
        for tensor, marked in self.weights:
            if marked:
                yield _IS_FLOAT32
            yield tensor.detach().float().contiguous().reshape(-1).numpy().data


@dataclass
class WrittenNetwork:
    """`layers` in the order in which they run; `outputs`: the blob of each output of the graph, and its shape without the batch axis."""

    layers: list[Layer]
    outputs: list[tuple[str, tuple[int, ...]]]

    def param(self) -> str:
        """The text of a .param file; its input is called `input`."""
        lines = [layer.line(f"layer{number}") for number, layer in enumerate(self.layers)]
        return "\n".join([str(_MAGIC), f"{len(lines)} {sum(len(layer.outputs) for layer in self.layers)}", *lines, ""])

    def weights(self) -> Iterator[bytes | memoryview]:
        """The bytes of a .bin file, in pieces."""
        for layer in self.layers:
            yield from layer.bytes()


def with_splits(layers: list[Layer]) -> list[Layer]:
    """The layers with a copy of a blob for each of its readers: ncnn lets a blob have one, and one that nobody reads is left out."""
    readers: dict[str, int] = {}
    for layer in layers:
        for blob in layer.inputs:
            readers[blob] = readers.get(blob, 0) + 1
    copies: dict[str, list[str]] = {}
    result = []
    for layer in layers:
        layer.inputs = [copies[blob].pop(0) if blob in copies else blob for blob in layer.inputs]
        result.append(layer)
        for blob in layer.outputs:
            if readers.get(blob, 0) > 1:
                copies[blob] = [f"{blob}_copy{number}" for number in range(readers[blob])]
                result.append(Layer("Split", [blob], list(copies[blob]), {}))
    return result


def blob_shape(node: Any) -> tuple[int, ...]:
    """The sizes of a value behind the batch axis. Raises BackendError where ncnn has no blob like it."""
    shape = node.meta["shape"]
    if len(shape) < 2 or len(shape) > 5 or shape[0] is not None or any(size is None for size in shape[1:]):
        raise refusal(node, f"a value of {text_of_shape(node)} is no batch of pictures with one to four axes")
    if node.meta["dtype"] is not None and node.meta["dtype"] != torch.float32:
        raise refusal(node, f"a value of {node.meta['dtype']} is none of float32")
    return tuple(shape[1:])


def sizes_of_blob(shape: Sequence[int]) -> dict[int, Parameter]:
    """The parameters that say the sizes of a blob, outermost first in `shape`."""
    return dict(zip(((0,), (1, 0), (2, 1, 0), (2, 11, 1, 0))[len(shape) - 1], shape, strict=True))


def _number(value: float) -> str:
    # With a point or an exponent it is a float to ncnn, else an integer.
    return str(value) if isinstance(value, int) else repr(float(value))


def text_of_shape(node: fx.Node) -> str:
    return "×".join("N" if size is None else str(size) for size in node.meta["shape"])


def refusal(node: fx.Node, why: str) -> BackendError:
    place = node.meta.get("path") or node.name
    return BackendError(f"ncnn cannot run the model: operation {op_name(node)} ({place}): {why}")
