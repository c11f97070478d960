"""The plan says what was done, to a person and to a program."""

from __future__ import annotations

import json

import pytest
import torch.nn.functional as F
from graph_support import images, net
from torch import nn

from fastcnn.graph.capture import capture
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.graph.plan import BackendTiming, Plan, StepKernel, make_rows


@pytest.fixture
def plan():
    def forward(s, x):
        y = s.conv(x)
        return F.relu(s.bn(y)), s.bn(s.other(x)), y

    model = net(forward, conv=nn.Conv2d(3, 4, 3), other=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    captured, reports = run_passes(capture(model, images(2, 3, 8, 8)), STANDARD_PASSES)
    kernels = {node.name: StepKernel("a kernel", "a reason", ("aten::conv2d", "aten::relu"), True) for node in captured.calls()}
    return Plan(
        "torch", make_rows(captured, kernels), reports, (BackendTiming("torch", 1.5, "the fastest"), BackendTiming("openvino", None, "not installed"))
    )


def test_rows(plan):
    assert [row.op for row in plan.rows] == ["conv2d", "batch_norm", "relu", "conv2d"]
    assert [row.step for row in plan.rows] == [0, 1, 2, 3]
    folded = plan.rows[3]
    assert (folded.name, folded.folded, folded.output_shape, folded.kernel, folded.why) == (
        "other",
        ("batch_norm",),
        (None, 4, 6, 6),
        "a kernel",
        "a reason",
    )
    assert plan.count("conv2d") == 2
    assert plan.count("linear") == 0


def test_fields_for_programs(plan):
    assert [(row.operations, row.fused) for row in plan.rows] == [(("aten::conv2d", "aten::relu"), True)] * 4


def test_plan_of_an_earlier_release(plan):
    data = plan.to_dict()
    for row in data["rows"]:
        del row["operations"], row["fused"]
    assert [(row.operations, row.fused) for row in Plan.from_dict(data).rows] == [((), False)] * 4


def test_reports(plan):
    report = next(report for report in plan.passes if report.name == "fold_batch_norm")

    assert str(report) == "fold_batch_norm: 1× (1 declined: the convolution's output is used elsewhere too)"


def test_table(plan):
    lines = str(plan).splitlines()

    assert lines[0] == "backend torch, 4 steps"
    assert lines[1].split() == ["step", "name", "op", "folded", "output", "kernel"]
    assert lines[5].split() == ["3", "other", "conv2d", "batch_norm", "N×4×6×6", "a", "kernel"]
    assert lines[6] == "drop_dropout: 0×"


def test_json_round_trip(plan):
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_unknown_pass():
    captured = capture(net(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 4, 3)), images(2, 3, 8, 8))
    with pytest.raises(ValueError, match="no pass is called fold_batchnorm; known: drop_dropout"):
        run_passes(captured, ["fold_batchnorm"])
