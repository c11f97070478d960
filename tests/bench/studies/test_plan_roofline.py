from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.bench.records.result import MachineCeilings
from fastcnn.bench.studies.plan_roofline import roofline_of, step_costs
from fastcnn.graph.capture import capture
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.optimized_module import OptimizedModule

CEILINGS = MachineCeilings(1e9, 1e10, "float32", "made up")


@pytest.fixture
def network() -> nn.Module:
    """[N, 3, 8, 8] → [N, 5]"""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    return nn.Sequential(*layers).eval()


def test_operations_and_bytes_of_each_step(network: nn.Module) -> None:
    graph, _ = run_passes(capture(network, torch.rand(2, 3, 8, 8)), (*STANDARD_PASSES, "fuse_convolution_epilogue"))
    graph.cast_constants(torch.float32)
    costs = {cost.op: cost for cost in step_costs(graph, 2)}
    # 2 pictures, 4 channels, 6×6 outputs: 27 multiply-adds each, the folded bias and the ReLU
    outputs = 2 * 4 * 6 * 6
    assert costs["fused_conv2d"].flops == outputs * (2 * 27 + 2)
    assert costs["fused_conv2d"].bytes == 4 * (2 * 3 * 8 * 8 + 4 * 27 + 4 + outputs)
    assert costs["max_pool2d"].flops == 2 * 4 * 3 * 3 * 4
    assert costs["max_pool2d"].bytes == 4 * (outputs + 2 * 4 * 3 * 3)
    assert (costs["flatten"].flops, costs["flatten"].bytes) == (0, 0)
    assert costs["linear"].flops == 2 * 2 * 4 * 5
    assert costs["linear"].bytes == 4 * (2 * 4 + 4 * 5 + 5 + 2 * 5)


def test_costs_grow_with_the_batch_but_weights_are_read_once(network: nn.Module) -> None:
    graph, _ = run_passes(capture(network, torch.rand(2, 3, 8, 8)), STANDARD_PASSES)
    graph.cast_constants(torch.float16)
    one, ten = ({cost.op: cost for cost in step_costs(graph, size)}["linear"] for size in (1, 10))
    assert ten.flops == 10 * one.flops
    assert ten.bytes - one.bytes == 9 * 2 * (4 + 5)


def test_every_step_of_the_torch_engine_is_timed_and_bounded(network: nn.Module) -> None:
    x = torch.rand(2, 3, 8, 8)
    fast = fastcnn.optimize(network, x, backend="torch")
    steps, total = roofline_of(fast, x, CEILINGS, 1e-3)
    assert [step.name for step in steps] == [row.name for row in fast.plan.rows]
    assert [step.kernel for step in steps] == [row.kernel for row in fast.plan.rows]
    for step in steps:
        assert step.seconds is not None
        assert step.seconds > 0
        assert step.bound_seconds == pytest.approx(max(step.flops / 1e10, step.bytes / 1e9))
        assert step.bound == ("compute" if step.flops / 1e10 > step.bytes / 1e9 else "memory")
        assert step.share == (pytest.approx(step.bound_seconds / step.seconds) if step.bytes else None)
    assert total.bound_seconds == pytest.approx(sum(step.bound_seconds for step in steps))
    assert total.share == pytest.approx(total.bound_seconds / 1e-3)
    assert (total.backend, total.steps) == ("torch", len(steps))


def test_an_account_that_does_not_fit_the_plan_gives_no_times(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3, 8, 8)
    fast = fastcnn.optimize(network, x, backend="torch")
    plan = replace(fast.plan, rows=tuple(replace(row, operations=("aten::unheard_of",)) for row in fast.plan.rows))
    monkeypatch.setattr(OptimizedModule, "plan", plan)
    steps, total = roofline_of(fast, x, CEILINGS, None)
    assert all(step.seconds is None and step.share is None for step in steps)
    assert (total.seconds, total.share) == (None, None)


def test_another_engine_is_bounded_by_the_fused_graph(network: nn.Module) -> None:
    pytest.importorskip("onnxruntime")
    x = torch.rand(2, 3, 8, 8)
    fast = fastcnn.optimize(network, x, backend="onnxruntime")
    steps, total = roofline_of(fast, x, CEILINGS, 1e-3)
    assert total.backend == "onnxruntime"
    assert [step.op for step in steps] == ["fused_conv2d", "max_pool2d", "adaptive_avg_pool2d", "flatten", "linear"]
    assert all(step.seconds is None for step in steps)


def test_fused_step_without_onednn_is_the_sum_of_its_operations() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double().eval()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    fast = fastcnn.optimize(network, x, backend="torch")
    (row,) = fast.plan.rows
    assert (row.operations, row.fused) == (("aten::conv2d", "aten::relu"), True)
    (step,), _ = roofline_of(fast, x, CEILINGS, None)
    assert step.seconds is not None
