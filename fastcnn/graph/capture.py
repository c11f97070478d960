"""From an `nn.Module` to a graph of ATen operations with a dynamic batch, by `torch.export`."""

from __future__ import annotations

import dataclasses
import linecache
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastcnn.errors import CaptureError, InputError
from fastcnn.graph.functionalize import functionalize
from fastcnn.graph.ir import CapturedGraph, Shape

log = logging.getLogger(__name__)


def capture(model: nn.Module, example_input: Tensor) -> CapturedGraph:
    """Capture the inference graph of `model`.

    Args:
        model: any classifier in evaluation mode that takes one floating-point tensor; not changed.
        example_input: [N, C, H, W] (or any rank ≥ 1 with the batch first), N ≥ 1. The batch stays dynamic, the other sizes become part of the graph.

    Raises:
        InputError: the example is not a floating-point tensor with a batch dimension.
        CaptureError: a module is in training mode, or `torch.export` cannot follow the code; names the operation and the line.
    """
    _check(model, example_input)
    program = _export(model, example_input)
    module = program.module()
    _drop_guards(module)
    (input_node,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    _simplify_metadata(module.graph)
    outputs = module.graph.output_node().args[0]
    flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    foreign = [output for output in flat if not isinstance(output, fx.Node)]
    if foreign:
        raise CaptureError(f"{type(model).__name__} returns {foreign[0]!r} among its outputs: only tensors can be captured")
    spec = program.call_spec.out_spec
    module.graph.set_codegen(fx.graph.CodeGen())
    module.graph.output_node().args = (flat,)
    captured = CapturedGraph(module, input_node.meta["shape"], input_node.meta["dtype"], pytree.treespec_dumps(spec), _info(model))
    captured.tidy()
    return captured


def _check(model: nn.Module, example: Tensor) -> None:
    if not isinstance(example, Tensor) or not example.is_floating_point() or example.dim() < 1:
        what = f"{example.dtype} {list(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"the example input must be one floating-point tensor with the batch first, such as [1, 3, 224, 224]; it is {what}")
    if example.shape[0] == 0:
        raise InputError("the example input is an empty batch; give at least one picture")
    training = [path or type(model).__name__ for path, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 1} more modules" if len(training) > 1 else ""
        raise CaptureError(f"{training[0]}{more} in training mode: call model.eval() first, inference is what gets optimized")


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    # torch.export takes a size of 1 for a constant, so the batch that it sees has two pictures.
    if example.shape[0] == 1:
        example = torch.cat([example, example])
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
            return functionalize(program)
    except Exception as error:
        raise CaptureError(_describe(model, error)) from error


def _describe(model: nn.Module, error: BaseException) -> str:
    """One line: the operation that could not be captured, where it stands in the model's own code, and the first line of the reason."""
    place, operation = _innermost(error.__traceback__)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    what = f"operation {operation}" if operation else "the model"
    return f"torch.export cannot capture {what} of {type(model).__name__}{f' at {place}' if place else ''}: {type(error).__name__}: {reason}"


def _innermost(traceback: TracebackType | None) -> tuple[str, str]:
    """The last frame outside PyTorch with its source line, and the last ATen operation that was being dispatched."""
    inside_torch, here = str(Path(torch.__file__).parent), str(Path(__file__))
    place = operation = ""
    while traceback is not None:
        frame = traceback.tb_frame
        if not frame.f_code.co_filename.startswith((inside_torch, here, "<")):
            line = linecache.getline(frame.f_code.co_filename, traceback.tb_lineno).strip()
            place = f"{Path(frame.f_code.co_filename).name}:{traceback.tb_lineno} ({line})"
            operation = ""
        func = frame.f_locals.get("func")
        if isinstance(func, torch._ops.OpOverload):
            operation = str(func)
        traceback = traceback.tb_next
    return place, operation


def _drop_guards(module: fx.GraphModule) -> None:
    """The engine's module checks its input itself, with messages about pictures rather than about symbols."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and not node.users:
            module.graph.erase_node(node)


def _simplify_metadata(graph: fx.Graph) -> None:
    for node in graph.nodes:
        value = node.meta.get("val")
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        node.meta = {"shape": _shape(value), "dtype": getattr(value, "dtype", None), "path": path, "folded": ()}


def _shape(value: object) -> Shape:
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _info(model: nn.Module) -> dict[str, Any]:
    """What the model says of itself, as plain data that a file can hold."""
    described = getattr(model, "fastcnn_info", None)
    info = dataclasses.asdict(described) if dataclasses.is_dataclass(described) and not isinstance(described, type) else {}
    return {"name": type(model).__name__.lower(), **info}
