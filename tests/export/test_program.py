"""A program around our graph computes what the graph does, is what ONNX models are made from, and holds for every batch."""

from __future__ import annotations

import logging

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from export_networks import Several, example, small
from graph_support import net
from torch import nn

from fastcnn.errors import RequestError
from fastcnn.export import lower_to_onnx, onnx_lowering
from fastcnn.export.program import to_program
from fastcnn.graph.capture import capture, tracing
from fastcnn.graph.ir import CapturedGraph, aten


def program_of(captured: CapturedGraph):
    with tracing(), torch.no_grad():
        return to_program(captured)


@pytest.fixture
def network() -> nn.Module:
    """Operations with a form of their own in a program: BatchNorm, the global pool, a conversion."""
    parts = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "fc": nn.Linear(4, 5)}
    return net(lambda s, x: s.fc(F.adaptive_avg_pool2d(s.norm(s.conv(x)).relu().to(torch.float64), 1).flatten(1).to(torch.float32)), **parts)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_same_numbers_at_every_batch(network: nn.Module, batch: int) -> None:
    captured = capture(network, example())
    x = torch.rand(batch, 3, 12, 12)
    torch.testing.assert_close(program_of(captured).module()(x), captured.module(x), rtol=1e-6, atol=1e-6)


def test_it_is_decomposed_only_where_there_is_something_to_decompose(network: nn.Module) -> None:
    program = program_of(capture(network, example()))
    table = {aten.batch_norm.default: None, aten.adaptive_avg_pool2d.default: None, aten.to.dtype: None}
    assert program.run_decompositions(table) is program
    decomposed = program.run_decompositions(torch.export.default_decompositions())  # which has one of conv2d
    assert aten.convolution.default in {node.target for node in decomposed.graph.nodes}


@pytest.mark.parametrize("make", [small, Several])
def test_onnx_is_made_from_it_and_without_it_the_same(make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="fastcnn.export")
    captured, x = capture(make().eval(), example()), torch.rand(3, 3, 12, 12).numpy()
    captured.cast_constants(torch.float32)
    made = lower_to_onnx(captured)
    assert "is traced again" not in caplog.text

    def refuse(*arguments: object) -> None:
        raise RequestError("no program")

    monkeypatch.setattr(onnx_lowering, "to_program", refuse)
    traced = lower_to_onnx(captured)
    assert "is traced again for ONNX: no program" in caplog.text
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in traced.graph.node]
    first, second = (onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x}) for model in (made, traced))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_operation_for_one_batch_size_only_is_refused() -> None:
    captured = capture(small(), example())
    (output,) = captured.output_nodes
    with captured.graph.inserting_before(captured.graph.output_node()):
        fixed = captured.graph.call_function(aten.view.default, (output, [2, 2, 2]))
    fixed.meta.update(output.meta)
    captured.graph.output_node().args = ([fixed],)
    captured.tidy()
    with pytest.raises(RequestError, match="holds for some batch sizes only"):
        program_of(captured)
