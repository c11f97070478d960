"""The last edits before a graph becomes a file: precision at its borders, softmax, a fixed batch."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.errors import RequestError
from fastcnn.graph.custom import foreign_calls, library_of, spelled
from fastcnn.graph.ir import CapturedGraph, aten
from fastcnn.precision import Precision

# The free sides of a picture [N, H, W, C], and sizes to trace them with: unlike each other and anything else in a graph.
_SIDE_NAMES = {1: "height", 2: "width"}
_FREE_SIDES = {1: 227, 2: 229}


def refuse_foreign(captured: CapturedGraph, format_: str) -> None:
    """Raises RequestError where an operation belongs to a library other than PyTorch: a file of this format must run without it."""
    foreign = next(iter(foreign_calls(captured.graph)), None)
    if foreign is not None:
        target: Any = foreign.target
        raise RequestError(
            f"{captured.info['name']} cannot be lowered to {format_}: operation {spelled(target)}{_at(foreign)} is of the library "
            f'{library_of(target)}, which those who open the file need not have; fastcnn.optimize(…, backend="torch") runs it, and save keeps it'
        )


def refuse_free_rank(captured: CapturedGraph, format_: str) -> None:
    """Raises RequestError where a squeeze takes the batch away, at a batch of 1: the rank of what follows would then depend on the batch."""
    for node in captured.calls(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        source, dims = node.args[0], node.args[1:]
        assert isinstance(source, fx.Node)
        shape, name = source.meta["shape"], captured.info["name"]
        named = [dims[0]] if dims and isinstance(dims[0], int) else dims[0] if dims else range(len(shape))
        if any(shape[dim] is None for dim in named):  # type: ignore[union-attr]
            raise RequestError(
                f"{name} cannot be lowered to {format_}: operation squeeze{_at(node)} drops the batch where it is 1, and what follows "
                "has another rank then: name the dimensions, as in squeeze((2, 3)), or use flatten(1)"
            )


def _at(node: fx.Node) -> str:
    where = node.meta.get("place") or node.meta.get("path")
    return f" at {where}" if where else ""


def finish(captured: CapturedGraph, precision: Precision, softmax: bool, wide: Container[str] = ()) -> CapturedGraph:
    """A copy whose constants are rounded once to `precision`; input and outputs stay float32: the file is a drop-in whatever it computes in.

    Args:
        wide: names of operations that stay in float32, with their constants.

    Raises:
        RequestError: softmax of a model that does not return one [N, classes, ...] tensor.
    """
    captured = captured.copy()
    outputs = list(captured.output_nodes)
    kept = {node for node in captured.calls() if node.name in wide}
    exact = {source: captured.raw_constant(source) for node in kept for source in node.all_input_nodes if source.op == "get_attr"}
    captured.cast_constants(precision.dtype)
    _keep_in_float32(captured, kept, exact)
    captured.module.cpu()  # a file belongs to no device
    if precision is not Precision.fp32:
        _cast_borders(captured, precision.dtype, outputs, kept)
    if softmax:
        if len(outputs) != 1 or len(outputs[0].meta["shape"]) < 2:
            raise RequestError(f"softmax needs a model with one output [N, classes]; {captured.info['name']} has {len(outputs)} outputs")
        with captured.graph.inserting_before(captured.graph.output_node()):
            probabilities = captured.graph.call_function(aten.softmax.int, (outputs[0], 1))
        probabilities.meta.update(outputs[0].meta, path="softmax")
        outputs = [probabilities]
    captured.graph.output_node().args = (outputs,)
    captured.input_dtype = captured.input_node.meta["dtype"]
    captured.tidy()
    captured.module.eval()
    return captured


def _keep_in_float32(captured: CapturedGraph, kept: set[fx.Node], exact: Mapping[fx.Node, Tensor]) -> None:
    """What the operations `kept` read and give in float32; `exact` are their constants before any rounding."""
    for source, tensor in exact.items():
        if tensor.is_floating_point():
            copied = captured.add_constant(source.meta["constant"], tensor.to(torch.float32), source)
            copied.meta["path"] = source.meta.get("path", copied.meta["path"])
            source.replace_all_uses_with(copied, delete_user_cb=lambda user: user in kept)
            if not source.users:  # the name is free again
                copied.meta["constant"] = source.meta["constant"]
                captured.graph.erase_node(source)
    for node in kept:
        if _is_float(node):
            node.meta["dtype"] = torch.float32


def _is_float(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is not None and dtype.is_floating_point


def _cast_borders(captured: CapturedGraph, dtype: torch.dtype, outputs: list[fx.Node], kept: set[fx.Node]) -> None:
    """One cast for each value that is read in the other dtype: the float32 inputs, what operations `kept` in float32 read and give, the outputs."""
    graph = captured.graph
    sources = [source for source in captured.input_nodes if _is_float(source)]
    for source in sources:
        source.meta["dtype"] = torch.float32
    narrowed: dict[fx.Node, fx.Node] = {}
    for value in [*sources, *captured.calls()]:
        if not _is_float(value):
            continue
        wide = value in sources or value in kept
        readers = [user for user in value.users if user.op == "call_function" and (user not in kept) == wide]
        if readers or (value in sources and value in outputs):
            target = dtype if wide else torch.float32
            with graph.inserting_after(value):
                cast = graph.call_function(aten.to.dtype, (value, target))
            cast.meta.update(value.meta, dtype=target, path="input" if value in sources else value.meta.get("path", ""))
            for reader in readers:
                reader.replace_input_with(value, cast)
            narrowed[value] = cast
    for position, output in enumerate(outputs):
        if output in kept:
            continue
        output = narrowed[output] if output in sources else output
        with graph.inserting_before(graph.output_node()):
            outputs[position] = graph.call_function(aten.to.dtype, (output, torch.float32))
        outputs[position].meta.update(output.meta, dtype=torch.float32, path="output")


def deployed_module(captured: CapturedGraph, batch_size: int | None = None) -> fx.GraphModule:
    """The graph as a file exposes it: it returns one tensor for a model with one output, or else a flat tuple of its tensors.

    With `batch_size`, its first operation is one that only a batch of that size passes.
    """
    captured = captured.copy()
    outputs = captured.output_nodes
    captured.graph.output_node().args = (outputs[0] if len(outputs) == 1 else tuple(outputs),)
    for source in captured.input_nodes if batch_size is not None else ():
        readers = list(source.users)
        with captured.graph.inserting_before(source.next):
            sizes = [captured.graph.call_function(aten.sym_size.int, (source, axis)) if size is None else size for axis, size in _sides(source)]
            fixed = captured.graph.call_function(aten.view.default, (source, [batch_size, *sizes]))
        for reader in readers:
            reader.replace_input_with(source, fixed)
    captured.tidy()
    return captured.module.eval()


def _sides(source: fx.Node) -> list[tuple[int, int | None]]:
    return [(axis, size) for axis, size in enumerate(source.meta["shape"]) if axis > 0]


def examples_for(captured: CapturedGraph, batch_size: int | None) -> tuple[Tensor, ...]:
    """A tensor for each input to trace with: two pictures where the batch is dynamic, since a size of 1 would be taken for a constant."""
    examples = []
    for source in captured.input_nodes:
        sizes = [_FREE_SIDES[axis] if size is None else size for axis, size in _sides(source)]
        examples.append(torch.zeros([batch_size or 2, *sizes], dtype=source.meta["dtype"]))
    return tuple(examples)


def dynamic_sizes(captured: CapturedGraph, batch_size: int | None, largest: int | None = None) -> tuple[dict[int, Any], ...] | None:
    """`dynamic_shapes` of torch.export, of each input: the batch, of `largest` pictures at most, unless it is fixed, and the free sides of a
    picture."""
    batch = {} if batch_size is not None else {0: torch.export.Dim("batch", max=largest)}
    free = tuple(
        batch | {axis: torch.export.Dim(_SIDE_NAMES[axis]) for axis, size in _sides(source) if size is None} for source in captured.input_nodes
    )
    return free if any(free) else None


def input_names(captured: CapturedGraph, outputs: Sequence[str] = ()) -> list[str]:
    """`input` of a model with one; or else the names of the arguments, where no output has such a name, or input_0, input_1 and so on."""
    sources = captured.input_nodes
    if len(sources) == 1:
        return ["input"]
    names = [str(source.meta.get("argument") or "") for source in sources]
    if all(name.isidentifier() for name in names) and len({*names, *outputs}) == len(names) + len(set(outputs)):
        return names
    return [f"input_{position}" for position in range(len(sources))]


def default_output_names(captured: CapturedGraph, single: str = "logits") -> list[str]:
    """`single` of a model with one output; the keys of one that returns a dict; or else output_0, output_1 and so on."""
    count = len(captured.output_nodes)
    if count == 1:
        return [single]
    keys = _dict_keys(captured.output_spec)
    if len(keys) == count and all(isinstance(key, str) and key.isidentifier() and key != "input" for key in keys):
        return keys
    return [f"output_{position}" for position in range(count)]


def _dict_keys(spec: str) -> list[Any]:
    """Keys of a treespec in JSON that is one flat dict; empty for any other."""
    _, tree = json.loads(spec)
    if tree.get("type") not in ("builtins.dict", "collections.OrderedDict") or any(child["children_spec"] for child in tree["children_spec"]):
        return []
    context = tree["context"]
    keys = json.loads(context) if isinstance(context, str) else context
    return keys if isinstance(keys, list) else []
