"""A file is checked in its own runtime before it exists; it says what it is; and whatever goes wrong leaves the folder as it was."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_networks import EXPORTERS, SUFFIX, Several, example, small
from torch import Tensor, nn

from fastcnn.errors import CaptureError, ParityError, RequestError
from fastcnn.export import check, export_onnx, export_pt2, export_torchscript, exporter, read_metadata, torch_archive, verify_file
from fastcnn.export.container import read_container
from fastcnn.graph.capture import capture
from fastcnn.models import create_model, model_spec
from fastcnn.models.weights import state_dict_sha256
from fastcnn.preprocessing import Preprocessing

RUNTIMES = {
    "onnx": ("onnxruntime", "openvino") if importlib.util.find_spec("openvino") else ("onnxruntime",),
    "torchscript": ("torch",),
    "pt2": ("torch",),
}


def load(format_: str, path: Path) -> Any:
    """A function from a tensor to a list of tensors, as a user would load the file."""
    if format_ == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda x: [torch.from_numpy(output) for output in session.run(None, {"input": x.numpy()})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.load says that it is deprecated
        module = torch.jit.load(str(path)) if format_ == "torchscript" else torch.export.load(path).module()

    def run(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            result = module(x)
        return [result] if isinstance(result, Tensor) else list(result)

    return run


@pytest.mark.parametrize("format_", EXPORTERS)
def test_a_file_computes_the_same_at_any_batch(format_: str, tmp_path: Path) -> None:
    model, path = small(), tmp_path / f"small{SUFFIX[format_]}"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = EXPORTERS[format_](model, path, example())
    assert report.parity.passed
    assert report.parity.runtimes == RUNTIMES[format_]
    assert [row.batch_size for row in report.parity.rows] == [1, 2, 5] * len(RUNTIMES[format_])
    assert (report.path, report.format, report.bytes) == (path, format_, path.stat().st_size)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(report) == f"{path}: {format_}, {report.bytes:,} bytes, {report.parity.summary()}"
    assert [p.fired for p in report.passes if p.name == "fold_batch_norm"] == [1]
    run = load(format_, path)
    for count in (1, 3, 7):
        x = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            torch.testing.assert_close(run(x)[0], model(x))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_metadata_describes_the_file(exported: tuple[str, Path]) -> None:
    format_, path = exported
    metadata = read_metadata(path)
    assert metadata["format"] == format_
    assert metadata["model"]["name"] == "small"
    assert metadata["model"]["weights_sha256"] == state_dict_sha256(small().state_dict())
    assert metadata["versions"]["torch"] == importlib.metadata.version("torch")
    # onnx 1.21 takes no step below 15 for it.
    assert metadata.get("opset") in ((13, 15) if format_ == "onnx" else (None,))
    assert metadata["precision"] == "fp32"
    assert metadata["input"] == {
        "name": "input",
        "layout": "NCHW",
        "shape": ["batch", 3, 12, 12],
        "dtype": "float32",
        "normalization": None,
        "preprocessing": None,
        "preprocessing_in_file": "none",
    }
    assert metadata["outputs"] == [{"name": "logits", "shape": ["batch", 4], "dtype": "float32"}]
    assert metadata["labels"] == ["a", "b", "c", "d"]
    assert any(line.startswith("fold_batch_norm: 1×") for line in metadata["passes"])
    assert set(metadata["parity"]) == set(RUNTIMES[format_])
    for figures in metadata["parity"].values():
        assert 0 < figures["relative_error"] <= figures["tolerance"] == 1e-5
        assert figures["batch_sizes"] == [1, 2, 5]


def test_a_registered_model_is_described_with_its_normalization_and_random_weights(tmp_path: Path) -> None:
    report = export_onnx(create_model("simple_cnn", seed=3), tmp_path / "model.onnx", torch.rand(1, 1, 28, 28))
    metadata = read_metadata(tmp_path / "model.onnx")
    assert metadata == json.loads(json.dumps(report.metadata))
    assert metadata["model"]["name"] == "simple_cnn"
    assert metadata["model"]["options"]["num_classes"] == 10
    assert metadata["model"]["weights"] == "random (seed 3), scaled so that no layer inflates its signal"
    assert metadata["input"]["normalization"]["mean"] == [0.1307]
    assert metadata["input"]["preprocessing"] == model_spec("simple_cnn").preprocessing.to_dict()
    assert "golden" not in report.to_dict()["metadata"]
    json.dumps(report.to_dict())


def test_no_path_of_this_machine_stands_in_a_file(exported: tuple[str, Path]) -> None:
    data = exported[1].read_bytes()
    for text in (str(Path(__file__).parents[2]), str(Path.home()), "site-packages", str(Path(torch.__file__).parent), "tests/"):
        assert text.encode() not in data


@pytest.mark.parametrize("format_", EXPORTERS)
def test_softmax_gives_probabilities(format_: str, tmp_path: Path) -> None:
    model, path = small(), tmp_path / f"model{SUFFIX[format_]}"
    report = EXPORTERS[format_](model, path, example(), softmax=True)
    assert report.parity.passed
    assert report.metadata["outputs"][0]["name"] == "probabilities"
    with torch.no_grad():
        torch.testing.assert_close(load(format_, path)(example())[0], model(example()).softmax(1))


@pytest.mark.parametrize("format_", EXPORTERS)
def test_float16_inside_keeps_a_float32_border(format_: str, tmp_path: Path) -> None:
    model = create_model("residual_mnist")
    picture = torch.rand(1, 1, 28, 28)
    half = EXPORTERS[format_](model, tmp_path / f"half{SUFFIX[format_]}", picture, precision="fp16")
    assert half.parity.passed
    assert half.parity.dtype == "float16"
    if format_ == "onnx":  # the archives hold more text than this model has weights
        assert half.bytes < 0.65 * 4 * sum(parameter.numel() for parameter in model.parameters())
    output = load(format_, half.path)(picture)[0]
    assert output.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(output, model(picture), rtol=1e-2, atol=1e-2)
    assert verify_file(half.path).passed


@pytest.mark.parametrize("format_", EXPORTERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_in_the_file(format_: str, batch: int, tmp_path: Path) -> None:
    model, path = small(), tmp_path / f"model{SUFFIX[format_]}"
    report = EXPORTERS[format_](model, path, example(), batch_size=batch)
    assert report.parity.batch_sizes == (batch,)
    assert report.metadata["input"]["shape"] == [batch, 3, 12, 12]
    assert report.metadata["outputs"][0]["shape"] == [batch, 4]
    run = load(format_, path)
    with torch.no_grad():
        torch.testing.assert_close(run(example(batch))[0], model(example(batch)))
    with pytest.raises(Exception, match=r"(?i)shape|dimension|expected|guard"):
        run(example(4))
    assert verify_file(path).passed


@pytest.mark.parametrize("format_", EXPORTERS)
def test_several_outputs_come_as_a_flat_tuple_with_names(format_: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Several().eval(), tmp_path / f"model{SUFFIX[format_]}"
    report = EXPORTERS[format_](model, path, example())
    assert report.parity.passed
    assert [output["name"] for output in report.metadata["outputs"]] == ["logits", "centred"]
    outputs, expected = load(format_, path)(example(3)), model(example(3))
    torch.testing.assert_close(outputs, [expected["logits"].detach(), expected["centred"].detach()])
    # The second output depends on the batch: the golden batches were run one by one.
    assert verify_file(path).passed
    with pytest.raises(RequestError, match="softmax needs a model with one output"):
        EXPORTERS[format_](model, tmp_path / "other", example(), softmax=True)


@pytest.mark.parametrize("format_", EXPORTERS)
def test_a_captured_graph_is_exported_too(format_: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{SUFFIX[format_]}"
    report = EXPORTERS[format_](capture(small(), example()), path, example())
    assert report.parity.passed
    with torch.no_grad():
        torch.testing.assert_close(load(format_, path)(example())[0], small()(example()))


@pytest.mark.parametrize(("format_", "dtype"), [("onnx", torch.float64), ("onnx", torch.float16), ("pt2", torch.float16)])
def test_a_model_of_another_dtype_becomes_a_float32_file(format_: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path, model = tmp_path / f"model{SUFFIX[format_]}", small().to(dtype)
    assert EXPORTERS[format_](model, path, example().to(dtype)).parity.passed
    output = load(format_, path)(example())[0]
    assert output.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(output, model.float()(example()), rtol=1e-4, atol=1e-5)


@contextmanager
def folder_unchanged(folder: Path) -> Iterator[None]:
    def content() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    before = content()
    yield
    assert content() == before


@pytest.mark.parametrize("format_", EXPORTERS)
@pytest.mark.parametrize(
    "problem", [KeyboardInterrupt(), OSError(28, "No space left on device"), ParityError("refused")], ids=lambda p: type(p).__name__
)
def test_an_interrupted_check_leaves_the_folder_as_it_was(
    format_: str, problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_text("the old file")
    seen = []

    def run(path: Path, batches: Any) -> Any:
        seen.append(path.exists() and tmp_path in path.parents)  # in a folder of its own
        raise problem

    monkeypatch.setattr(check, "runtimes_for", lambda format_: {"test": run})
    expected = RequestError if isinstance(problem, OSError) else type(problem)  # a full disk is said with the file's name
    for name in ("model", "other"):
        with folder_unchanged(tmp_path), pytest.raises(expected):
            EXPORTERS[format_](small(), tmp_path / name, example(), force=True)
    assert seen == [True, True]


@pytest.mark.parametrize("format_", EXPORTERS)
def test_a_file_that_computes_something_else_is_not_kept(format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that goes wrong: one weight of the graph is off by a part in a thousand."""
    run_passes = exporter.run_passes

    def broken(captured: Any, names: Any) -> Any:
        graph, reports = run_passes(captured, names)
        name, weight = next((name, tensor) for name, tensor in graph.constants().items() if tensor.dim() == 4)
        weight[0, 0, 0, 0] *= 1.5
        assert name
        return graph, reports

    monkeypatch.setattr(exporter, "run_passes", broken)
    with folder_unchanged(tmp_path), pytest.raises(ParityError, match=r"was not written: .*largest difference [\d.e-]+, relative error") as caught:
        EXPORTERS[format_](small(), tmp_path / "model", example())
    assert caught.value.report is not None
    assert not caught.value.report.passed


def shift_one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that moves the outputs by about a part in ten thousand."""
    run_passes = exporter.run_passes

    def broken(captured: Any, names: Any) -> Any:
        graph, reports = run_passes(captured, names)
        next(tensor for tensor in graph.constants().values() if tensor.dim() == 4).mul_(1 + 1e-4)
        return graph, reports

    monkeypatch.setattr(exporter, "run_passes", broken)


@pytest.mark.parametrize("format_", EXPORTERS)
def test_a_tolerance_is_stated_in_the_file_and_verified(format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_one_weight(monkeypatch)
    path = tmp_path / f"model{SUFFIX[format_]}"
    with folder_unchanged(tmp_path), pytest.raises(ParityError, match="is above 1e-05"):
        EXPORTERS[format_](small(), path, example())
    report = EXPORTERS[format_](small(), path, example(), tolerance=1.25e-3)
    assert report.parity.relative_error > 1e-5
    for figures in read_metadata(path)["parity"].values():
        assert (figures["tolerance"], figures["tolerance_rule"]) == (1.25e-3, "asked for at the export")
    verified = verify_file(path)
    assert verified.passed
    assert verified.tolerance == 1.25e-3


@pytest.mark.parametrize("preprocess", ["none", "normalize"])
def test_a_model_whose_answers_overflow_float16_keeps_its_end_in_float32(preprocess: str, tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        model.head.weight.mul_(1e6)
    described = Preprocessing("RGB", None, (12, 12)) if preprocess != "none" else None
    report = export_onnx(model, tmp_path / "m.onnx", example(), precision="fp16", preprocess=preprocess, preprocessing=described)
    assert [one["layer"] for one in report.metadata["mixed_precision"]["float32_layers"]] == ["head"]


def test_a_model_that_gives_no_numbers_is_refused_before_any_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(path: Path, batches: Any) -> Any:
        raise AssertionError("no runtime is asked")

    monkeypatch.setattr(check, "runtimes_for", lambda format_: {"test": run})
    model = small()
    with torch.no_grad():
        model.head.bias[1] = torch.nan
    for precision in ("fp32", "fp16"):
        with folder_unchanged(tmp_path), pytest.raises(ParityError, match=r"small itself gives NaN or infinity .* in float64 too") as caught:
            export_onnx(model, tmp_path / "m.onnx", example(), precision=precision)
        assert "\n" not in str(caught.value)


def test_not_a_number_in_the_example_is_no_fault_of_the_model(tmp_path: Path) -> None:
    picture = example()
    picture[0, 0, 0, 0] = torch.nan
    assert export_onnx(nn.Flatten().eval(), tmp_path / "m.onnx", picture).parity.passed


def test_force_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("the old file")
    export_onnx(small(), path, example(), force=True)
    assert verify_file(path).passed


class LargestValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax()


def test_an_operation_that_the_lowering_rejects_is_named(tmp_path: Path) -> None:
    with folder_unchanged(tmp_path), pytest.raises(RequestError, match=r"aten\.amax\.default: ") as caught:
        export_onnx(LargestValue().eval(), tmp_path / "a.onnx", torch.rand(2, 3, 4, 4))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


def test_an_operation_without_standard_operators_is_named(tmp_path: Path) -> None:
    with (
        folder_unchanged(tmp_path),
        pytest.raises(RequestError, match=r"bessel cannot be lowered to ONNX: .*no standard operators for .*bessel_j0") as caught,
    ):
        export_onnx(Bessel().eval(), tmp_path / "model.onnx", example())
    assert "\n" not in str(caught.value)
    assert export_pt2(Bessel().eval(), tmp_path / "model.pt2", example()).parity.passed


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.mark.parametrize("format_", EXPORTERS)
def test_what_cannot_be_captured_is_not_exported(format_: str, tmp_path: Path) -> None:
    with folder_unchanged(tmp_path), pytest.raises(CaptureError):
        EXPORTERS[format_](DataDependent().eval(), tmp_path / "model", example())
    with folder_unchanged(tmp_path), pytest.raises(CaptureError, match="training mode"):
        EXPORTERS[format_](small().train(), tmp_path / "model", example())


def test_torchscript_says_once_that_it_is_deprecated(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_archive._say_deprecated.cache_clear()
    monkeypatch.setattr(logging.getLogger("fastcnn"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="fastcnn"):
        for name in ("a.pt", "b.pt"):
            export_torchscript(small(), tmp_path / name, example())
    # A set: where the command line has set up the logger before, pytest's handler hangs on two loggers and sees one record twice.
    (record,) = {record for record in caplog.records if record.name.startswith("fastcnn") and "deprecated" in record.message}
    assert ".pt2" in record.message


@pytest.mark.parametrize("format_", EXPORTERS)
def test_an_export_prints_and_warns_nothing(
    format_: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    if format_ == "torchscript":
        torch_archive._say_deprecated()
    capfd.readouterr()
    EXPORTERS[format_](small(), tmp_path / "model", example())
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_an_archive_holds_example_inputs_in_few_bytes(tmp_path: Path) -> None:
    """AOTInductor asks for them; 2 × 3 × 12 × 12 floats would be stored in 3,456 bytes."""
    export_pt2(small(), tmp_path / "model.pt2", example())
    program = torch.export.load(tmp_path / "model.pt2")
    (picture,), named = program.example_inputs
    assert (tuple(picture.shape), picture.dtype, named) == ((2, 3, 12, 12), torch.float32, {})
    records = read_container(tmp_path / "model.pt2")[0].content
    (stored,) = [data for name, data in records.items() if "sample_inputs" in name]
    assert len(stored) < 3000


def test_an_archive_bounds_its_dynamic_batch(tmp_path: Path) -> None:
    export_pt2(small(), tmp_path / "model.pt2", example())
    program = torch.export.load(tmp_path / "model.pt2")
    (bounds,) = program.range_constraints.values()
    assert bounds.upper == torch_archive.LARGEST_BATCH
    with torch.no_grad():
        assert program.module()(torch.zeros(torch_archive.LARGEST_BATCH, 3, 12, 12)).shape[0] == torch_archive.LARGEST_BATCH


def test_golden_output_is_the_float64_reference(exported: tuple[str, Path]) -> None:
    from fastcnn.export.golden import decode

    pair = decode(read_metadata(exported[1])["golden"])
    with torch.no_grad():
        truth = small().double()(torch.from_numpy(pair.pictures).double()).numpy()
    np.testing.assert_allclose(pair.outputs[1][0], truth, rtol=1e-12)
    np.testing.assert_allclose(pair.outputs[0][0], truth[:1], rtol=1e-12)
    assert pair.pictures.min() >= 0
    assert pair.pictures.max() <= 1.0001
