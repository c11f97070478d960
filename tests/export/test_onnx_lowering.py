"""The ONNX graph itself: opset, operators, names, shapes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from export_networks import Several, example, small
from torch import Tensor, nn

from fastcnn.errors import RequestError
from fastcnn.export import export_onnx, lower_to_onnx, onnx_lowering
from fastcnn.export.options import OPSETS
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.models import create_model


def lowered(model: nn.Module, x: Tensor) -> CapturedGraph:
    graph, _ = run_passes(capture(model, x), STANDARD_PASSES)
    graph.cast_constants(torch.float32)
    return graph


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_of_the_range_is_written_and_runs(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = export_onnx(create_model("residual_mnist"), path, torch.rand(1, 1, 28, 28), opset=opset)
    assert report.parity.passed
    assert report.metadata["opset"] == opset
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", opset)]


def test_inputs_outputs_and_batch_are_named() -> None:
    model = lower_to_onnx(lowered(small(), example()))
    assert [(value.name, shape(value)) for value in model.graph.input] == [("input", ["batch", 3, 12, 12])]
    assert [(value.name, shape(value)) for value in model.graph.output] == [("logits", ["batch", 4])]
    fixed = lower_to_onnx(lowered(small(), example()), batch_size=1, output_names=["scores"])
    assert [(value.name, shape(value)) for value in (*fixed.graph.input, *fixed.graph.output)] == [("input", [1, 3, 12, 12]), ("scores", [1, 4])]
    several = lower_to_onnx(lowered(Several().eval(), example()))
    assert [value.name for value in several.graph.output] == ["logits", "centred"]


def test_nodes_bear_the_names_of_their_modules() -> None:
    model = lower_to_onnx(lowered(create_model("inception_mnist"), torch.rand(1, 1, 28, 28)))
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    convolutions = {name.removesuffix("/Conv") for name in names if name.endswith("/Conv")}
    assert {"conv1", "inception1.branch1x1", "inception2.branch3x3_3", "inception2.branch_pool"} <= convolutions
    assert "fc/Gemm" in names


def test_only_standard_operators_and_no_notes_of_the_exporter() -> None:
    model = lower_to_onnx(lowered(small(), example()))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert not model.metadata_props
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        assert not item.metadata_props
        assert not item.doc_string


def test_an_operator_outside_the_standard_is_refused_and_named() -> None:
    model = lower_to_onnx(lowered(small(), example()))
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.example", "FastConv"
    with pytest.raises(RequestError, match=r"small needs operators outside the ONNX standard: com\.example::FastConv"):
        onnx_lowering._check_standard(model, "small")


def test_a_model_too_large_for_protobuf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_lowering, "_LARGEST", 1000)
    with pytest.raises(RequestError, match="an ONNX file holds at most 2 GB"):
        lower_to_onnx(lowered(small(), example()))


class Modern(nn.Module):
    """What newer networks use beside convolutions: GELU, GroupNorm, interpolation, squeeze and excitation, a pool to a size that does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, groups=1)
        self.norm = nn.GroupNorm(2, 8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8 * 25, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.norm(self.conv(x)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = nn.functional.interpolate(nn.functional.hardswish(self.depthwise(x)), scale_factor=2, mode="bilinear")
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 5).flatten(1))


def test_operations_of_newer_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert export_onnx(Modern().eval(), tmp_path / "model.onnx", example()).parity.passed
