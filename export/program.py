"""A graph of ours as a program of `torch.export`, made without tracing the network again: for a deep one that takes most of the time of an export."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from fastcnn.errors import RequestError
from fastcnn.export.lowering import dynamic_sizes, examples_for
from fastcnn.graph.ir import CapturedGraph, arguments, aten, pair
from fastcnn.graph.plan import op_name


class ReadyProgram(ExportedProgram):
    """A program that is decomposed only where one of its operations has a decomposition: PyTorch would trace it again to find out."""

    def run_decompositions(self, decomp_table: dict[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        """The program itself where `decomp_table` has none of its operations."""
        if decomp_table is not None and not any(node.target in decomp_table for node in self.graph.nodes if node.op == "call_function"):
            return self
        return super().run_decompositions(decomp_table, **options)


def to_program(captured: CapturedGraph, batch_size: int | None = None) -> ReadyProgram:
    """The graph as a program that takes its inputs and returns the list of its outputs.

    Nodes are named as a trace would name them, after their operation and a number in their order. The caller holds
    `fastcnn.graph.capture.tracing`.

    Raises:
        RequestError: an operation of the graph takes the size of the example's batch for every batch's. A trace finds another way, or says so too.
    """
    examples = examples_for(captured, batch_size)
    sizes = dynamic_sizes(captured, batch_size)
    if sizes is not None and len(examples) > 1:
        sizes = (sizes[0], sizes[1:])  # type: ignore[assignment] # as the frame takes them
    frame = torch.export.export(_Frame(len(captured.output_nodes)), examples, dynamic_shapes=sizes)
    values = [node.meta["val"] for node in frame.graph.find_nodes(op="placeholder")]
    mode = values[0].fake_mode
    graph, constants = _lift(captured)
    sources = graph.find_nodes(op="placeholder")[len(constants) :]
    outputs: Any = graph.output_node().args[0]
    signature = ExportGraphSignature(
        [
            *(InputSpec(InputKind.BUFFER, TensorArgument(name), name, persistent=True) for name in constants),
            *(InputSpec(InputKind.USER_INPUT, TensorArgument(source.name), None) for source in sources),
        ],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(output.name), None) for output in outputs],
    )
    module = fx.GraphModule(nn.Module(), graph)
    fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in constants.values()]
    # Several inputs have their batch in common already.
    known = dict(mode.shape_env.replacements)
    # PyTorch's C++ code for composite operations would take the sizes of the example for the sizes of every batch.
    with enable_python_dispatcher():
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*fakes, *values)
    if mode.shape_env.replacements != known:
        raise RequestError(f"an operation of {captured.info['name']} decides something that holds for some batch sizes only")
    return ReadyProgram(
        module,
        graph,
        signature,
        dict(constants),
        frame.range_constraints,
        frame.module_call_graph,
        (examples, {}),
        verifiers=[frame.verifier],
    )


class _Frame(nn.Module):
    """What surrounds the graph in a program, without the graph: inputs of symbolic sizes, so many outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, x: Tensor, *more: Tensor) -> list[Tensor]:
        return [x.clone() for _ in range(self._outputs)]


def _lift(captured: CapturedGraph) -> tuple[fx.Graph, dict[str, Tensor]]:
    """A copy of the graph whose constants are placeholders in front of the inputs, and their tensors in that order, by the names of both."""
    graph = fx.Graph()
    names = dict.fromkeys(str(node.target) for node in captured.graph.nodes if node.op == "get_attr")
    constants = {name: graph.placeholder(name) for name in names}
    copies: dict[fx.Node, fx.Node] = {}
    for node in captured.graph.nodes:
        if node.op == "get_attr":
            copies[node] = constants[node.target]
        elif node.op == "placeholder":
            copies[node] = graph.placeholder(node.name if len(captured.input_nodes) > 1 else "x")
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = _as_decomposed(graph, node, args) or graph.create_node("call_function", node.target, args, kwargs, op_name(node))
    graph.output(fx.map_arg(captured.graph.output_node().args[0], copies.__getitem__))
    return graph, {placeholder.name: getattr(captured.module, name).detach() for name, placeholder in constants.items()}


def _as_decomposed(graph: fx.Graph, node: fx.Node, args: tuple[Any, ...]) -> fx.Node | None:
    """What nearly every network has and a program in PyTorch's inference form has not, as its decompositions write it."""
    if node.target is aten.to.dtype and len(args) == 2 and not node.kwargs:
        return graph.create_node("call_function", aten._to_copy.default, args[:1], {"dtype": args[1]}, "_to_copy")
    if node.target is aten.adaptive_avg_pool2d.default and list(pair(arguments(node)["output_size"])) == [1, 1]:
        return graph.create_node("call_function", aten.mean.dim, (args[0], [-1, -2], True), {}, "mean")
    if node.target is aten.batch_norm.default and not arguments(node)["training"] and args[3] is not None and args[4] is not None:
        x, weight, bias, mean, variance, _, momentum, eps, *_ = args
        name = "_native_batch_norm_legit_no_training"
        statistics = (x, weight, bias, mean, variance, momentum, eps)
        normalised = graph.create_node("call_function", aten._native_batch_norm_legit_no_training.default, statistics, {}, name)
        return graph.create_node("call_function", operator.getitem, (normalised, 0), {}, "getitem")
    return None
