"""The ONNX graph itself: opset, operators, names, shapes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
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


class Head(nn.Module):
    """Ends as most classifiers do: a global mean, flattened, and a layer."""

    def __init__(self, pool: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.norm, self.fc = nn.Conv2d(3, 8, 3), pool, norm or nn.Identity(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.pool(self.conv(x).relu()).flatten(1)))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


POOLS = [Mean(), nn.AdaptiveAvgPool2d(1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: type(pool).__name__)
def test_the_lowest_opset_is_the_default_with_axes_as_an_attribute(pool: nn.Module, dtype: torch.dtype) -> None:
    graph = lowered(Head(pool).eval(), example())
    graph.cast_constants(dtype)
    model, newer = lower_to_onnx(graph), lower_to_onnx(graph, opset=18)
    assert [(entry.version, model.ir_version) for entry in model.opset_import] == [(13, 7)]
    onnx.checker.check_model(model, full_check=True)
    (mean,) = [node for node in model.graph.node if node.op_type == "ReduceMean"]
    assert (len(mean.input), {attribute.name for attribute in mean.attribute} >= {"axes"}) == (1, True)
    assert len(model.graph.initializer) < len(newer.graph.initializer)  # the axes
    if dtype == torch.float32:
        answers = [run(written, example(5)) for written in (model, newer)]
        torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: type(pool).__name__)
@pytest.mark.parametrize("opset", [None, 18, 20])
def test_a_global_mean_is_no_global_average_pool_and_no_reshape_allows_zero(pool: nn.Module, opset: int | None) -> None:
    """MNN 3.6 reads GlobalAveragePool wrongly without a word (error 0.36 to 0.77), and onnx2torch refuses `allowzero`."""
    model = lower_to_onnx(lowered(Head(pool).eval(), example()), opset=opset)
    kinds = [node.op_type for node in model.graph.node]
    assert "ReduceMean" in kinds
    assert "GlobalAveragePool" not in kinds
    assert not [attribute for node in model.graph.node for attribute in node.attribute if attribute.name == "allowzero"]


@pytest.mark.parametrize("opset", [None, 18, 20])
def test_every_value_inside_has_its_shape_in_the_file(opset: int | None) -> None:
    """Without value_info OpenCV 4 answers wrongly without a word (7e-2 on inception_mnist)."""
    model = lower_to_onnx(lowered(create_model("inception_mnist"), torch.rand(1, 1, 28, 28)), opset=opset)
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    assert [name for node in model.graph.node for name in node.output if name not in known] == []


def test_an_operator_that_an_opset_lacks_is_named() -> None:
    graph = lowered(Head(Mean(), nn.LayerNorm(8)).eval(), example())
    assert [entry.version for entry in lower_to_onnx(graph).opset_import] == [17]
    with pytest.raises(RequestError, match=r"head cannot be written for ONNX opset 16 \(the lowest is 17\): LayerNormalization exists from opset 17"):
        lower_to_onnx(graph, opset=16)


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
