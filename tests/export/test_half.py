"""float16 files: what float16 is too narrow for stays in float32 and is named, in every format and runtime."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_networks import EXPORTERS, SUFFIX, example, small
from onnx import TensorProto
from torch import Tensor, nn
from typer.testing import CliRunner

from fastcnn.cli.app import app
from fastcnn.errors import RequestError
from fastcnn.export import export_onnx, read_metadata, verify_file
from fastcnn.export.against import verify_against
from fastcnn.export.runtimes import runtimes_for
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import aten
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.quantization.half import WideLayers, _glance, _unsigned, find_wide_layers


class Stack(nn.Module):
    """[N, 3, 12, 12] → [N, 4]: four convolutions; the second's output is `gain` times as large, and the fourth takes it back."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third, self.fourth = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.second.weight *= gain
            self.second.bias *= gain
            self.third.bias *= gain
            self.fourth.weight /= gain

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = torch.relu(self.fourth(torch.max_pool2d(torch.relu(self.third(x)), 2)))
        return self.head(x.mean((2, 3)))


class Varied(nn.Module):
    """[N, 3, 12, 12] → [N, 4]: a BatchNorm whose running variance float16 cannot hold, and a second one that brings the numbers back."""

    def __init__(self, variance: float = 1e12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.pool = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.scale, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.norm.running_var.fill_(variance)
        self.scale.running_var.fill_(0.1 / variance)
        self.scale.eps = 1e-30  # PyTorch 2.11 takes no 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(self.scale(x).mean((2, 3)))


def pictures(count: int = 4, size: int = 12) -> Tensor:
    coarse = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=size, mode="bilinear")


def wide(model: nn.Module, batch: Tensor | None = None) -> WideLayers:
    graph, _ = run_passes(capture(model.eval(), pictures()), STANDARD_PASSES)
    return find_wide_layers(graph, [pictures() if batch is None else batch])


@pytest.mark.parametrize("format_", EXPORTERS)
@pytest.mark.parametrize(
    ("model", "layers"),
    [(Stack(1e5), {"second", "third", "fourth"}), (Varied(), {"conv", "scale"})],
    ids=["overflow", "huge variance"],
)
def test_what_float16_cannot_hold_stays_in_float32(model: nn.Module, layers: set[str], format_: str, tmp_path: Path) -> None:
    with torch.no_grad():
        truth = model.eval()(pictures())
        eager = copy.deepcopy(model).half()(pictures().half()).float()
    assert not torch.allclose(eager, truth, rtol=0.05)  # NaN, or far off
    report = EXPORTERS[format_](model, tmp_path / f"half{SUFFIX[format_]}", pictures(), precision="fp16")
    assert report.parity.passed
    assert report.parity.relative_error < 5e-3
    if format_ == "onnx":
        assert set(report.runtimes) == set(runtimes_for("onnx"))
    about = read_metadata(report.path)["mixed_precision"]
    assert layers <= {one["layer"] for one in about["float32_layers"]}
    assert "first" not in {one["layer"] for one in about["float32_layers"]}
    assert about["observed"]["source"] == "the check"
    assert verify_file(report.path).passed
    assert verify_against(report.path, model, pictures()).passed


def test_one_region_has_one_cast_on_each_side(tmp_path: Path) -> None:
    report = export_onnx(Stack(1e5).eval(), tmp_path / "half.onnx", pictures(), precision="fp16")
    graph = onnx.load(report.path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    assert {name.partition(".")[0] for name, kind in kinds.items() if kind == TensorProto.FLOAT} == {"second", "third", "fourth"}
    assert {name.partition(".")[0] for name, kind in kinds.items() if kind == TensorProto.FLOAT16} == {"first", "head"}
    # The input, behind the first layer, behind the fourth, the output.
    assert Counter(node.op_type for node in graph.node)["Cast"] == 4
    # A network that fits has the two of its borders.
    plain = export_onnx(Stack().eval(), tmp_path / "plain.onnx", pictures(), precision="fp16")
    assert Counter(node.op_type for node in onnx.load(plain.path).graph.node)["Cast"] == 2
    assert read_metadata(plain.path)["mixed_precision"]["float32_layers"] == []


class Between(nn.Module):
    """Two operations that need float32, and between them some that do not."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(x * 1e6)
        return (x - 0.5).relu().flatten(1).clamp(min=1e-12).log()


class Parted(nn.Module):
    """The parts of a split, one of which grows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).chunk(2, 1)
        return self.head(torch.cat([left * 1e5 + right, right], 1).mean((2, 3)) * torch.tensor([1e-5] * 4 + [1.0] * 4))


class Cancelling(nn.Module):
    """Sums of large numbers that leave small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 12 * 12, 4, bias=False)
        with torch.no_grad():
            self.head.weight[:] = 500 * torch.tensor([1.0, -1.0]).repeat(216) + torch.rand(4, 432, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.clamp(x.flatten(1), 1, 1))


class Last(Stack):
    """Logits beyond float16."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e7


@pytest.mark.parametrize(("model", "cause"), [(Between(), "computes with"), (Parted(), "reaches"), (Last(), "its output reaches")])
def test_networks_of_other_kinds_are_right(model: nn.Module, cause: str, tmp_path: Path) -> None:
    for format_ in ("onnx", "pt2"):
        report = EXPORTERS[format_](model.eval(), tmp_path / f"half{SUFFIX[format_]}", pictures(), precision="fp16")
        assert report.parity.passed
        assert any(cause in one["why"] for one in report.metadata["mixed_precision"]["float32_layers"])


def test_what_lies_between_is_not_cast_to_and_fro() -> None:
    model = Between()
    graph, _ = run_passes(capture(model.eval(), pictures()), STANDARD_PASSES)
    found = find_wide_layers(graph, [pictures()])
    assert found.nodes == {node.name for node in graph.calls()}
    assert len(found.why) < len(found.nodes)


def test_sums_that_cancel_are_seen() -> None:
    found = wide(Cancelling())
    assert "adds up to 2.2e+05 inside" in found.why["head"]


def test_weights_that_vanish_are_named_with_their_channels() -> None:
    model = Stack()
    with torch.no_grad():
        model.third.weight *= 1e-3
        model.third.weight[2] *= 2e-3
    assert wide(model).why == {"third": "third.weight vanishes: its numbers go no further than 4.5e-07 in 1 channel"}
    with torch.no_grad():  # of no use to anybody, as in networks trained with weight decay
        model.third.weight[2] *= 1e-15
    assert wide(model).why == {}
    assert wide(Stack()).why == {}


def test_pictures_of_a_calibration_are_looked_at_too(tmp_path: Path) -> None:
    model = Stack(1e3).eval()
    assert wide(model).nodes == frozenset()
    report = export_onnx(model, tmp_path / "m.onnx", pictures(), precision="fp16", calibration=100 * pictures(12))
    about = read_metadata(report.path)["mixed_precision"]
    assert about["observed"] == {"source": "the array given and the check", "pictures": 17}
    assert "second" in {one["layer"] for one in about["float32_layers"]}
    with pytest.raises(RequestError, match="--calibration is for --precision int8 and fp16"):
        export_onnx(model, tmp_path / "other.onnx", pictures(), calibration=pictures(12))
    with pytest.raises(RequestError, match="--calibration is for --precision int8 and fp16"):
        EXPORTERS["pt2"](model, tmp_path / "other.pt2", pictures(), calibration=pictures(12))
    assert not (tmp_path / "other.onnx").exists()


def test_ranges_of_an_int8_export_serve(tmp_path: Path) -> None:
    model = Stack().eval()
    options: dict[str, Any] = {"precision": "int8", "calibration": pictures(12), "save_ranges": tmp_path / "ranges.json", "max_error": 0.5}
    export_onnx(model, tmp_path / "int8.onnx", pictures(), **options)
    report = export_onnx(model, tmp_path / "half.onnx", pictures(), precision="fp16", calibration=tmp_path / "ranges.json")
    assert report.metadata["mixed_precision"]["observed"]["source"].startswith("ranges.json (the array given)")
    with pytest.raises(RequestError, match="observed with other weights"):
        export_onnx(Stack(2.0).eval(), tmp_path / "other.onnx", pictures(), precision="fp16", calibration=tmp_path / "ranges.json")


def test_the_command_line_says_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wide_network.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(400, 4))\n"
        "    model[0].weight.data *= 1e5\n"
        "    model[2].weight.data *= 1e-5\n"
        "    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    np.save("pictures.npy", pictures(12).numpy())
    runner, model = CliRunner(), ["export", "wide_network.py:make", "--input-shape", "3x12x12", "-o", "m.onnx"]
    result = runner.invoke(app, [*model, "--precision", "fp16", "--calibration", "pictures.npy", "--attest"])
    assert result.exit_code == 0, result.output
    assert "float16" in result.output
    assert "all but" in result.output
    assert "its output reaches" in result.output
    statement = json.loads(Path("m.onnx.intoto.json").read_text())
    assert statement["predicate"]["mixed_precision"]["float32_layers"]
    refused = runner.invoke(app, [*model, "--precision", "fp16", "--calibration", "pictures.npy", "--max-error", "0.1", "--force"])
    assert refused.exit_code == 2
    assert "--max-error belongs to int8" in refused.output


@pytest.mark.parametrize("call", range(6))
def test_the_bound_on_sums_bounds_them(call: int) -> None:
    generator = torch.Generator().manual_seed(call)
    x, w = torch.randn(2, 4, 9, 9, generator=generator), torch.randn(6, 2, 3, 3, generator=generator)
    a, b, c = torch.randn(5, 7, generator=generator), torch.randn(7, 3, generator=generator), torch.randn(3, generator=generator)
    target, args = [
        (aten.conv2d.default, (x, w, None, [1, 1], [1, 1], [1, 1], 2)),
        (aten.conv_transpose2d.input, (x, torch.randn(4, 3, 3, 3, generator=generator))),
        (aten.linear.default, (a, b.t(), c)),
        (aten.addmm.default, (c, a, b)),
        (aten.matmul.default, (a, b)),
        (aten.sum.dim_IntList, (x, [2, 3])),
    ][call]
    exact = float(target(*_unsigned(args)).max())
    assert exact <= _glance(target, args, target(*args)) * (1 + 1e-6)


def test_every_operation_of_a_float16_file_has_one_dtype(tmp_path: Path) -> None:
    """A Gemm from float16 to float32, which the standard does not have, is what stricter parsers refuse."""
    path = tmp_path / "model.onnx"
    export_onnx(small(), path, example(), precision="fp16")
    model = onnx.load(path)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert {types[name] for name in (*gemm.input, *gemm.output)} == {onnx.TensorProto.FLOAT16}
