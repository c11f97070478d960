"""Files that multiply 8-bit numbers: judged on pictures, by both runtimes, and refused where one of them computes something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from fastcnn.errors import ParityError, RequestError
from fastcnn.export import export_onnx, export_pt2, read_metadata, verify_file
from fastcnn.export.container import read_container
from fastcnn.export.runtimes import runtimes_for
from fastcnn.export.seal import seal
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.gate import judge
from fastcnn.quantization.request import Limits
from fastcnn.quantization.scheme import instruction_set

SHAPE = (3, 16, 16)


class Stem(nn.Module):
    """[N, 3, 16, 16] → [N, 5]; the weights make up most of a file."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 96, 3), nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.max_pool2d(torch.relu(self.first(x)), 2)))
        return self.head(x.mean((2, 3)))


def pictures(count: int = 120) -> Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=16, mode="bilinear")


def export(path: Path, **options: Any) -> Any:
    given = {"calibration": pictures(), "precision": "int8", **options}
    return export_onnx(Stem().eval(), path, pictures(2), **given)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    export(folder / "model.onnx", save_ranges=folder / "ranges.json")
    return folder / "model.onnx"


def test_the_file_holds_integers_and_says_how_it_was_judged(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    integers = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1]
    assert sum(int(np.prod(tensor.dims)) for tensor in integers) == sum(weight.numel() for weight in Stem().parameters() if weight.dim() > 1)
    assert not [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    metadata = read_metadata(exported)
    about = metadata["quantization"]
    assert (metadata["precision"], metadata["input"]["dtype"]) == ("int8", "float32")
    assert about["instruction_set"] == instruction_set()
    assert about["calibration"] == {"source": "the array given", "samples": 96, "skipped": 0}
    assert (about["layers"], about["float_layers"], about["held_out"]) == (3, [], 24)
    assert set(about["gate"]) == set(runtimes_for("onnx"))
    assert all(0 < figures["relative_error"] < 0.05 and figures["top1_agreement"] >= 0.9 for figures in about["gate"].values())
    plain = export_onnx(Stem().eval(), tmp_path / "plain.onnx", pictures(2))
    weights = sum(parameter.nbytes for parameter in Stem().parameters())
    assert plain.bytes - exported.stat().st_size > 0.7 * weights - 40_000


def test_both_runtimes_multiply_integers(exported: Path, tmp_path: Path) -> None:
    from fastcnn.runtimes.onnxruntime import open_session

    open_session(exported, optimized_model=tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2
    assert "Conv" not in kinds
    pytest.importorskip("openvino")
    from fastcnn.runtimes.openvino import compile_model

    operations = [operation.get_rt_info() for operation in compile_model(exported.read_bytes()).get_runtime_model().get_ordered_ops()]
    precisions = [str(info["runtimePrecision"].value) for info in operations if str(info["layerType"].value) == "Convolution"]
    assert precisions == ["u8", "u8"]


def test_verify_judges_by_what_the_file_keeps(exported: Path, tmp_path: Path) -> None:
    report = verify_file(exported)
    assert report.passed
    assert (report.dtype, report.runtimes) == ("int8", tuple(runtimes_for("onnx")))
    assert report.rows[0].batch_size >= 3
    # A file with other numbers in it is told, by its digest and by its answers.
    container, metadata = read_container(exported)
    model = onnx.load(exported)
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and list(tensor.dims) == [96, 32, 3, 3]:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    damaged = tmp_path / "damaged.onnx"
    type(container)("onnx", model.SerializeToString(deterministic=True)).write(damaged, metadata)
    report = verify_file(damaged)
    assert not report.passed
    assert "the weights changed" in report.failures[0]
    container, metadata = read_container(damaged)
    container.write(damaged, seal({**metadata, "digests": container.digests()}))
    assert any("relative error" in failure for failure in verify_file(damaged).failures)


def test_ranges_serve_a_second_export(exported: Path, tmp_path: Path) -> None:
    report = export(tmp_path / "again.onnx", calibration=exported.with_name("ranges.json"))
    assert read_container(report.path)[0].digests() == read_container(exported)[0].digests()
    other = Stem().eval()
    other.head.weight.data *= 2
    with pytest.raises(RequestError, match="observed with other weights"):
        export_onnx(other, tmp_path / "other.onnx", pictures(2), precision="int8", calibration=exported.with_name("ranges.json"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["again.onnx"]


def test_pixels_probabilities_and_a_fixed_batch(exported: Path, tmp_path: Path) -> None:
    preprocessing = Preprocessing(resize=16, crop=(16, 16))
    ranges = exported.with_name("ranges.json")
    for name, options in {"pixels": {"preprocess": "normalize", "softmax": True}, "fixed": {"batch_size": 7, "quantize_for": "tensorrt"}}.items():
        report = export(tmp_path / f"{name}.onnx", calibration=ranges, preprocessing=preprocessing, **options)
        assert verify_file(report.path).passed
        runtimes = tuple(runtimes_for("onnx")) if name == "pixels" else ("onnxruntime",)
        assert report.parity.runtimes == runtimes


def test_limits_that_nothing_holds_leave_no_file(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="misses its limits in int8"):
        export(tmp_path / "model.onnx", calibration=exported.with_name("ranges.json"), max_error=1e-7)
    with pytest.raises(RequestError, match="int8 files are ONNX"):
        export_pt2(Stem().eval(), tmp_path / "model.pt2", pictures(2), precision="int8")
    assert not list(tmp_path.iterdir())


def test_bad_pictures_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds noise"):
        export(tmp_path / "model.onnx", calibration=torch.randn(20, *SHAPE), save_ranges=tmp_path / "ranges.json")
    assert not list(tmp_path.iterdir())


class Joined(nn.Module):
    """[N, 3, 24, 24] → [N, 10]: three branches that meet in a concat, and a convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.pooled, self.behind, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(48, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        branches = [self.left(x), self.right(x), self.pooled(torch.max_pool2d(x, 3, 1, 1))]
        return self.head(torch.relu(self.behind(torch.cat([torch.relu(branch) for branch in branches], 1))).mean((2, 3)))


def test_the_gate_stops_what_openvino_computes_wrongly(tmp_path: Path) -> None:
    """Behind a concat of symmetric int8, OpenVINO 2026.4 loses a scale: such a file is refused by its answers, and TensorRT, onnxruntime get it."""
    pytest.importorskip("openvino")
    model, shots = Joined().eval(), nn.functional.interpolate(pictures(60), size=24, mode="bilinear") * 2 - 1
    ranges, options = tmp_path / "ranges.json", {"precision": "int8", "portable": True, "force": True}
    path = export_onnx(model, tmp_path / "joined.onnx", shots[:2], calibration=shots, quantize_for="tensorrt", save_ranges=ranges, **options).path
    with torch.no_grad():
        truth = [model.double()(shots[:20].double()).numpy()]
    model.float()
    errors = {
        name: judge(run(path, [shots[:20].numpy()])[0], truth, Limits(), runtime=name).relative_error for name, run in runtimes_for("onnx").items()
    }
    assert errors["onnxruntime"] < 0.02
    assert errors["openvino"] > 0.1, "OpenVINO computes it rightly by now: say so where quantize_for is described"
    with pytest.raises(ParityError, match="openvino computes it wrongly; --quantize-for cpu"):
        export_onnx(model, tmp_path / "any.onnx", shots[:2], calibration=ranges, quantize_for="any", **options)
    assert not (tmp_path / "any.onnx").exists()
    assert export_onnx(model, tmp_path / "cpu.onnx", shots[:2], calibration=ranges, quantize_for="cpu", **options).parity.passed


def test_a_runtime_that_is_further_off_than_eager_pytorch_is_told(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saturation, for one, takes a few percent off: within the limit, and still not what the graph says."""
    real = runtimes_for("onnx")["onnxruntime"]

    def saturating(path: Path, batches: Any) -> Any:
        return [[output * 0.95 for output in outputs] for outputs in real(path, batches)]

    monkeypatch.setattr("fastcnn.export.quantized.runtimes_for", lambda format_: {"onnxruntime": saturating})
    monkeypatch.setattr("fastcnn.export.quantized.has_vnni", lambda: False)
    with pytest.raises(ParityError, match="this CPU has no VNNI, so that weights of 8 bits saturate: --portable"):
        export(tmp_path / "model.onnx", calibration=exported.with_name("ranges.json"), portable=False)
    report = verify_file(exported)
    assert not report.passed
    assert "relative error 0.05" in report.failures[0]


def test_a_runtime_that_misses_the_limits_is_told_with_the_layers_that_hurt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def further_off(runtime: Any) -> Any:
        return lambda path, batches: [[output + 0.004 * np.abs(output).max() for output in outputs] for outputs in runtime(path, batches)]

    runtimes = {name: further_off(run) for name, run in runtimes_for("onnx").items()}
    monkeypatch.setattr("fastcnn.export.quantized.runtimes_for", lambda format_: runtimes)
    own = export(tmp_path / "m.onnx", max_error=0.3).metadata["quantization"]["gate"]["onnxruntime"]["relative_error"]
    with pytest.raises(ParityError, match=r"onnxruntime misses the limits: relative error .* the layers that hurt most: \w+ \(0\.\d+\)"):
        export(tmp_path / "n.onnx", max_error=own - 0.001)
    assert not (tmp_path / "n.onnx").exists()


def test_labelled_pictures_judge_by_the_accuracy(tmp_path: Path) -> None:
    judged = pictures(40) + 0.01
    with torch.no_grad():
        right = Stem().eval()(judged).argmax(1)
    report = export(tmp_path / "m.onnx", labelled=(judged, right))
    about = report.metadata["quantization"]
    assert (about["held_out"], about["labels"]) == (40, "labelled pictures")
    assert all(figures["reference_accuracy"] >= 0.95 and figures["accuracy"] >= 0.9 for figures in about["gate"].values())
    assert verify_file(report.path).passed
    # Pictures of which the reference gets none right cannot drop, whatever changes; a limit on the error still holds.
    assert export(tmp_path / "n.onnx", labelled=(judged, (right + 1) % 5), max_accuracy_drop=1e-9).parity.passed
    with pytest.raises(RequestError, match="has 5 classes, and labelled pictures has labels up to 5"):
        export(tmp_path / "o.onnx", labelled=(judged, right * 0 + 5))
    with pytest.raises(RequestError, match="there are 40 and 39"):
        export(tmp_path / "o.onnx", labelled=(judged, right[1:]))
    with pytest.raises(RequestError, match="labelled pictures judge an int8 file"):
        export(tmp_path / "o.onnx", labelled=(judged, right), precision="fp16")
    assert not (tmp_path / "o.onnx").exists()
