"""Models of several inputs, and of integers: on every engine, in every kind of file, saved and loaded; and what cannot take them says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_networks import EXPORTERS, SUFFIX
from support import CPU_BACKENDS
from torch import Tensor, nn

import fastcnn
from fastcnn.engines import available_backends
from fastcnn.errors import BackendError, CaptureError, FileFormatError, InputError, RequestError
from fastcnn.export import export_onnx, read_metadata, verify_file
from fastcnn.export.against import verify_against
from fastcnn.prediction.loading import load_predictor


class ImageAndTable(nn.Module):
    """Two inputs and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.table, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return {"logits": self.head(features + self.table(table)), "features": features}


class ImageAndIndex(nn.Module):
    """The second input chooses a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rows = nn.Conv2d(3, 8, 3), nn.Embedding(10, 8)

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3)) + self.rows(which)


class Pixels(nn.Module):
    """Takes uint8 and normalises it itself."""

    def __init__(self, *, named: bool = True) -> None:
        super().__init__()
        self.conv, self.head, self.named = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), named

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float() / 255 if self.named else pixels / 255
        return self.head(torch.relu(self.conv(x - 0.5)).mean((2, 3)))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def whole(seed: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


CASES = {
    "two inputs, a dict": (ImageAndTable, (drawn(0, 2, 3, 12, 12), drawn(1, 2, 4))),
    "an index": (ImageAndIndex, (drawn(0, 3, 3, 12, 12), torch.tensor([1, 7, 4]))),
    "pixels": (Pixels, whole(0, 256, 2, 3, 12, 12)),
    "pixels, divided": (lambda: Pixels(named=False), whole(0, 256, 2, 3, 12, 12)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, ...]]:
    build, example = CASES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
    return model, example if isinstance(example, tuple) else (example,)


def values(outputs: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_engine_runs_saves_and_loads_them(case: tuple[nn.Module, tuple[Tensor, ...]], backend: str, tmp_path: Path) -> None:
    if available_backends()[backend]:
        pytest.skip(str(available_backends()[backend]))
    model, examples = case
    fast = fastcnn.optimize(model, examples, backend=backend)
    report = fastcnn.verify(fast, model, examples)
    assert report.passed, report.summary()
    assert report.batch_sizes == (1, 2, 5)
    fastcnn.save(fast, tmp_path / "x.fast")
    outputs, loaded = fast(*examples), fastcnn.load(tmp_path / "x.fast")(*examples)
    assert [output.dtype for output in values(outputs)] == [torch.float32] * len(values(outputs))
    for one, other in zip(values(outputs), values(loaded), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    if isinstance(outputs, dict):
        assert list(outputs) == ["logits", "features"]
    empty = fast(*(example[:0] for example in examples))
    assert [len(output) for output in values(empty)] == [0] * len(values(outputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pixels_become_the_dtype_that_is_computed_in(dtype: torch.dtype) -> None:
    for name in ("pixels", "pixels, divided"):
        build, example = CASES[name]
        fast = fastcnn.optimize(build().eval(), example, backend="torch", dtype=dtype)
        assert fast(example).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert fast.dtype == dtype


@pytest.mark.parametrize("format_", EXPORTERS)
@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"batch_size": 2}], ids=str)
def test_every_file_takes_them(case: tuple[nn.Module, tuple[Tensor, ...]], format_: str, options: dict, tmp_path: Path) -> None:
    model, examples = case
    path = tmp_path / f"x{SUFFIX[format_]}"
    report = EXPORTERS[format_](model, path, examples, **options)
    assert report.parity.passed
    assert not report.left_out
    verdict = verify_file(path)
    assert verdict.passed, verdict.failures
    metadata, batch = read_metadata(path), options.get("batch_size", "batch")
    kinds = {torch.float32: "float32", torch.int64: "int64", torch.uint8: "uint8"}
    wanted = [{"shape": [batch, *example.shape[1:]], "dtype": kinds[example.dtype]} for example in examples]
    entries = metadata.get("inputs", [metadata["input"]])
    assert [{"shape": entry["shape"], "dtype": entry["dtype"]} for entry in entries] == wanted
    names = {ImageAndTable: ["image", "table"], ImageAndIndex: ["x", "which"], Pixels: ["input"]}[type(model)]
    assert [entry["name"] for entry in entries] == names


def test_an_edited_golden_input_is_noticed(tmp_path: Path) -> None:
    import onnx

    build, examples = CASES["two inputs, a dict"]
    path = tmp_path / "x.onnx"
    export_onnx(build().eval(), path, examples)
    file = onnx.load(path)
    (entry,) = [entry for entry in file.metadata_props if entry.key == "fastcnn"]
    whole, renamed, resized = entry.value, entry.value.replace('"table"', '"chair"'), entry.value.replace('"shape":[2,4]', '"shape":[2,5]')
    assert len({whole, renamed, resized}) == 3

    entry.value = renamed
    path.write_bytes(file.SerializeToString())
    assert any("inputs" in failure for failure in verify_file(path).failures)

    entry.value = resized
    path.write_bytes(file.SerializeToString())
    with pytest.raises(FileFormatError, match=r"golden\.others\[0\]\.shape: \[2, 5\] is not 2 of \['batch', 4\]"):
        verify_file(path)


WRONG = {
    "too few": (lambda x, table: (x,), "expected 2 inputs, got 1"),
    "another batch": (lambda x, table: (x, table[:1]), "expected one batch size, got 2 in the first input and 1 for input 1"),
    "another size": (lambda x, table: (x, table[:, :3]), "expected an input of N×4 for input 1, got 2×3"),
    "integers": (lambda x, table: (x, table.long()), "expected a floating-point tensor for input 1, got torch.int64"),
}


@pytest.fixture(scope="module")
def two() -> tuple[fastcnn.OptimizedModule, tuple[Tensor, ...]]:
    build, examples = CASES["two inputs, a dict"]
    return fastcnn.optimize(build().eval(), examples, backend="onnxruntime"), examples


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name: str, two: tuple[fastcnn.OptimizedModule, tuple[Tensor, ...]]) -> None:
    spoil, text = WRONG[name]
    with pytest.raises(InputError, match=text):
        two[0](*spoil(*two[1]))


def test_nan_in_any_input_comes_out(two: tuple[fastcnn.OptimizedModule, tuple[Tensor, ...]]) -> None:
    module, (image, table) = two
    outputs = module(image, torch.full_like(table, torch.nan))
    assert bool(outputs["logits"].isnan().all())
    assert bool(outputs["features"].isfinite().all())


def test_what_cannot_take_them_says_so(tmp_path: Path) -> None:
    build, examples = CASES["two inputs, a dict"]
    model = build().eval()
    with pytest.raises(CaptureError, match="a model of several inputs takes a tuple of examples"):
        fastcnn.optimize(model, examples[0])
    with pytest.raises(RequestError, match="int8 is for models of one floating-point input"):
        fastcnn.optimize(model, examples, dtype=torch.int8, calibration=examples[0].numpy(), backend="onnxruntime")
    with pytest.raises(RequestError, match="takes 2 inputs: leave preprocess='normalize'"):
        export_onnx(model, tmp_path / "x.onnx", examples, preprocess="normalize", preprocessing=fastcnn.preprocessing.Preprocessing())
    with pytest.raises(RequestError, match="integers from 0 to 300"):
        export_onnx(CASES["an index"][0]().eval(), tmp_path / "x.onnx", (examples[0], torch.tensor([0, 300])))
    export_onnx(model, tmp_path / "x.onnx", examples)
    with pytest.raises(RequestError, match="takes 2 inputs, and a picture is one"):
        load_predictor(tmp_path / "x.onnx")
    with pytest.raises(RequestError, match="takes 2 inputs: a file that takes one tensor can be held against a model"):
        verify_against(tmp_path / "x.onnx", model, examples[0])
    if available_backends()["ncnn"] is None:
        with pytest.raises(BackendError, match="runs models of one floating-point input, this one takes 2 inputs"):
            fastcnn.optimize(model, examples, backend="ncnn")
