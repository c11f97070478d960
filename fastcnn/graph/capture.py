"""From an `nn.Module` to a graph of ATen operations with a dynamic batch, by `torch.export`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import linecache
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastcnn.errors import CaptureError, FastcnnError, InputError
from fastcnn.graph.exported import take_own_names, to_graph_module
from fastcnn.graph.functionalize import functionalize
from fastcnn.graph.given import FlatModel, Seen, attributes_kept, unwrap
from fastcnn.graph.ir import CapturedGraph, Convolution, Shape, aten
from fastcnn.inputs import Inputs, as_inputs
from fastcnn.precision import exact_float32

_TRACING = threading.Lock()


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Around every call of `torch.export` and what stands on it: one thread at a time, and no other one has TF32 on meanwhile.

    torch.export keeps the symbols of what it traces in the process, stderr is redirected for all threads, and it saves and puts back cuDNN's TF32
    switch, which would undo what another thread set in between.
    """
    # In this order everywhere: who waits for the lock holds no setting that the one inside could want changed.
    with exact_float32(), _TRACING:
        yield


def capture(model: nn.Module, example_input: Inputs) -> CapturedGraph:
    """Capture the inference graph of `model`; threads take turns.

    Args:
        model: any classifier in evaluation mode that takes tensors; not changed.
        example_input: [N, C, H, W] (or any rank ≥ 1 with the batch first), N ≥ 1, of real numbers or integers; a tuple where the model takes several,
            all with one N. The batch stays dynamic, the other sizes become part of the graph.

    Raises:
        InputError: the example is not a tensor with a batch dimension, or its tensors differ in it.
        CaptureError: a module is in training mode, keeps state between calls, or `torch.export` cannot follow the code; names the operation and
            the line.
    """
    model = unwrap(model)
    examples = as_inputs(example_input)
    _check(model, examples)
    name = type(model).__name__
    with tracing():
        program, users, structure = _export(model, examples)
    module = to_graph_module(program, users, name)
    input_node = next(node for node in module.graph.nodes if node.op == "placeholder")
    _refuse_numbers(module.graph, name)
    _simplify_metadata(module.graph)
    _name_arguments(model, module.graph)
    _simplify_calls(module.graph)
    captured = CapturedGraph(module, input_node.meta["shape"], input_node.meta["dtype"], structure, _info(model))
    captured.tidy()
    return captured


def _check(model: nn.Module, examples: tuple[Tensor, ...]) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"the model must be a torch.nn.Module; it is a {type(model).__name__}")
    example = examples[0]
    if example.shape[0] == 0:
        raise InputError("the example input is an empty batch; give at least one picture")
    if example.is_meta:
        raise InputError("the example input is a meta tensor, which holds no values: give one on a real device")
    try:
        inspect.signature(model.forward).bind(*examples)
    except TypeError as error:
        given = "one tensor" if len(examples) == 1 else f"{len(examples)} tensors"
        more = "; a model of several inputs takes a tuple of examples" if len(examples) == 1 and "missing" in str(error) else ""
        raise CaptureError(f"{type(model).__name__} cannot be called with {given}: {error}{more}") from error
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != example.device:
            raise InputError(f"{name} is on {tensor.device}, the example input on {example.device}: move one of them")
    training = [path or type(model).__name__ for path, module in model.named_modules() if module.training]
    if training:
        others = len(training) - 1
        more = f" and {others} more module{'s' if others > 1 else ''}" if others else ""
        raise CaptureError(f"{training[0]}{more} in training mode: call model.eval() first, inference is what gets optimized")


def _export(model: nn.Module, examples: tuple[Tensor, ...]) -> tuple[torch.export.ExportedProgram, dict[str, str], str]:
    """The program, our name → the model's of each constant, and the structure of the outputs."""
    # torch.export takes a size of 1 for a constant, so the batch that it sees has two pictures.
    if examples[0].shape[0] == 1:
        examples = tuple(torch.cat([example, example]) for example in examples)
    seen = Seen()
    try:
        # Where it fails, torch.export prints the graph so far; our error says it in one line.
        with redirect_stderr(io.StringIO()), attributes_kept(model):
            program = _trace(model, examples, seen)
            users = take_own_names(program, prefix=FlatModel.PREFIX)
            _refuse_assigned(seen.assigned, users, type(model).__name__)
            return functionalize(program), users, seen.structure
    except FastcnnError:
        raise
    except Exception as error:
        raise CaptureError(_describe(model, examples, error)) from error


def _trace(model: nn.Module, examples: tuple[Tensor, ...], seen: Seen) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    sizes = (batch,) if len(examples) == 1 else (batch, (batch,) * (len(examples) - 1))
    with torch.no_grad():
        return torch.export.export(FlatModel(model, seen), examples, dynamic_shapes=sizes, strict=False)


def _describe(model: nn.Module, examples: tuple[Tensor, ...], error: BaseException) -> str:
    """One line: the operation that could not be captured, where it stands in the model's own code, and the first line of the reason."""
    reason = next((" ".join(line.split()) for line in str(error).splitlines() if line.strip()), type(error).__name__)
    reason = f"{type(error).__name__}: {reason}"
    if "Constraints violated" in reason:
        place, operation = _where_batch_is_restricted(model, examples)
        reason = "it does not work alike for every batch size; take the size from x.shape[0], or use x.flatten(1)"
    else:
        place, operation = _innermost(frame for frame, _ in traceback.walk_tb(error.__traceback__))
    what = f"operation {operation}" if operation else "the model"
    return f"torch.export cannot capture {what} of {type(model).__name__}{f' at {place}' if place else ''}: {reason}"


def _innermost(frames: Iterable[FrameType]) -> tuple[str, str]:
    """The last of `frames`, the outermost first, in the model's code with its source line, and the ATen operation being dispatched below it."""
    place = operation = ""
    for frame in frames:
        if _is_model_code(frame.f_code.co_filename):
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({line})"
            operation = ""
        func = frame.f_locals.get("func")
        if isinstance(func, torch._ops.OpOverload):
            operation = str(func)
    return place, operation


def _is_model_code(filename: str) -> bool:
    """Neither PyTorch, nor the standard library (inside which installed packages stand), nor this file."""
    inside_torch, library = str(Path(torch.__file__).parent), str(Path(os.__file__).parent)
    if filename.startswith((inside_torch, "<")) or filename == __file__:
        return False
    return not filename.startswith(library) or "-packages" in filename


class _BatchWatcher(logging.Filter):
    """Notes the first place in the model's code where PyTorch decides something that holds for some batch sizes only; lets no record through."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ("", "")

    def filter(self, record: logging.LogRecord) -> bool:
        if self.found == ("", "") and "[guard added]" in record.getMessage():
            self.found = _innermost(frame for frame, _ in reversed(list(traceback.walk_stack(sys._getframe(1)))))
        return False


def _where_batch_is_restricted(model: nn.Module, examples: tuple[Tensor, ...]) -> tuple[str, str]:
    """torch.export finds out only at its end: trace once more and watch its log for the decision."""
    logger, watcher = logging.getLogger("torch.fx.experimental.symbolic_shapes"), _BatchWatcher()
    level = logger.level
    logger.addFilter(watcher)
    logger.setLevel(logging.INFO)
    try:
        with redirect_stderr(io.StringIO()), attributes_kept(model):
            _trace(model, examples, Seen())
    except Exception:  # the error that brought us here
        pass
    finally:
        logger.setLevel(level)
        logger.removeFilter(watcher)
    return watcher.found


def _refuse_assigned(assigned: tuple[str, ...], users: dict[str, str], model: str) -> None:
    """A tensor that a call both reads and puts another one in the place of is state."""
    state = [name for name in assigned if name in users.values()]
    if state:
        raise CaptureError(
            f"{model} keeps state between calls: it assigns to {state[0]!r}, which it also reads; only pure functions can be optimized"
        )


def _refuse_numbers(graph: fx.Graph, model: str) -> None:
    outputs: Any = graph.output_node().args[0]
    for output in outputs:
        if not isinstance(output, fx.Node) or not isinstance(output.meta.get("val"), Tensor):
            raise CaptureError(f"{model} returns {output}, a number, among its outputs: only tensors can be captured")


def _name_arguments(model: nn.Module, graph: fx.Graph) -> None:
    """Notes on each of several inputs how the model calls its argument."""
    inputs = graph.find_nodes(op="placeholder")
    parameters = [parameter for parameter in inspect.signature(model.forward).parameters.values() if parameter.kind is not parameter.VAR_POSITIONAL]
    for node, parameter in zip(inputs, parameters, strict=False):
        if len(inputs) > 1:
            node.meta["argument"] = parameter.name


def _simplify_metadata(graph: fx.Graph) -> None:
    for node in graph.nodes:
        value = node.meta.get("val")
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        path = f"{path}.".removeprefix(FlatModel.PREFIX).rstrip(".")
        kept = {"constant": node.meta["constant"]} if "constant" in node.meta else {}
        if place := _place_in(node.meta.get("stack_trace") or ""):
            kept["place"] = place
        node.meta = {"shape": _shape(value), "dtype": getattr(value, "dtype", None), "path": path, "folded": (), **kept}


def _place_in(stack: str) -> str:
    """The last line of a stack that stands in the model's own code, as _innermost writes it; empty where none does."""
    users = [(file, line) for file, line in re.findall(r'File "(.*)", line (\d+), in ', stack) if _is_model_code(file)]
    if not users:
        return ""
    file, line = users[-1]
    return f"{Path(file).name}:{line} ({linecache.getline(file, int(line)).strip()})"


def _simplify_calls(graph: fx.Graph) -> None:
    """What the tracer's tensors, dense and of one dtype, made sure of need not hold where the graph runs."""
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            # An engine may choose another memory format, in which a view of this shape does not exist.
            node.target = aten.reshape.default
        elif node.target is aten.to.dtype and node.args[0].meta["dtype"] == node.args[1]:
            # A conversion to what it is would bring another dtype down to it, where the graph runs in one.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.conv2d.default:
            _drop_dilation_of_one(node)


def _drop_dilation_of_one(node: fx.Node) -> None:
    """A window of one position has nothing to spread. oneDNN, on a map one pixel wide, ends the process over it."""
    values = Convolution.of(node)
    needed = [dilation if size > 1 else 1 for dilation, size in zip(values.dilation, values.kernel, strict=True)]
    if needed != list(values.dilation):
        node.args, node.kwargs = values.args(dilation=needed), {}


def _shape(value: object) -> Shape:
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _info(model: nn.Module) -> dict[str, Any]:
    """What the model says of itself, as plain data that a file can hold."""
    described = getattr(model, "fastcnn_info", None)
    info = dataclasses.asdict(described) if dataclasses.is_dataclass(described) and not isinstance(described, type) else {}
    # Through JSON: a tuple would come back from a file as a list.
    return {"name": type(model).__name__.lower(), **json.loads(json.dumps(info))}
