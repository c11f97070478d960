"""Preprocessing inside a file: uint8 pixels in, the reference's answers out, in standard operators."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from export_networks import EXPORTERS, SUFFIX, example, small
from PIL import Image
from torch import nn
from torchvision.transforms import functional as pictures

from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.export import export_onnx, read_metadata, verify_file
from fastcnn.export.pixel_input import PixelInput, resample
from fastcnn.models import create_model
from fastcnn.preprocessing import Preprocessing

NORMALIZED = Preprocessing("RGB", 14, (12, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def pixels(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))


# -- the resize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 30), (31, 57), (14, 14), (9, 25), (300, 20), (1, 1), (14, 500)], ids=str)
@pytest.mark.parametrize("how", [("bilinear", True), ("bicubic", True), ("bilinear", False)], ids=str)
@pytest.mark.parametrize("resize", [14, 15, (17, 13)], ids=str)
def test_resampling_is_what_pytorch_interpolates(size: tuple[int, int], how: tuple[str, bool], resize: int | tuple[int, int]) -> None:
    interpolation, antialias = how
    wanted = Preprocessing("RGB", resize, (12, 11), interpolation, antialias)
    values = pixels(*size).permute(0, 3, 1, 2).double()
    resized = pictures.resize(Image.new("L", size[::-1]), resize if isinstance(resize, int) else list(resize)).size[::-1]
    full = F.interpolate(values, resized, mode=interpolation, antialias=antialias, align_corners=False)
    top, left = round((resized[0] - 12) / 2), round((resized[1] - 11) / 2)
    torch.testing.assert_close(resample(values, wanted), full[:, :, top : top + 12, left : left + 11], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resampling_differs_from_pillow_by_its_rounding_to_levels_only(interpolation: str) -> None:
    wanted = Preprocessing("RGB", 56, (50, 48), interpolation)
    coarse = Image.fromarray(pixels(9, 12)[0].numpy()).resize((211, 160), Image.Resampling.BICUBIC)
    ours = resample(torch.from_numpy(np.array(coarse)).permute(2, 0, 1)[None].double(), wanted).clamp(0, 255)
    assert (ours[0] - wanted.pixels(coarse)).abs().max() <= 1.0


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format_", "preprocess"), [("onnx", "normalize"), ("onnx", "resize"), ("torchscript", "resize"), ("pt2", "normalize")])
def test_every_format_takes_pixels_and_verifies(format_: str, preprocess: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{SUFFIX[format_]}"
    report = EXPORTERS[format_](small(), path, example(), preprocess=preprocess, preprocessing=NORMALIZED)
    assert report.parity.passed
    source = read_metadata(path)["input"]
    sides = ["height", "width"] if preprocess == "resize" else [12, 12]
    assert (source["layout"], source["dtype"], source["shape"]) == ("NHWC", "uint8", ["batch", *sides, 3])
    assert (Preprocessing.from_dict(source["preprocessing"]), source["preprocessing_in_file"]) == (NORMALIZED, preprocess)
    assert verify_file(path).passed


def run(path: Path, batch: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pixels_give_what_the_model_gives_for_the_picture(precision: str, tmp_path: Path) -> None:
    model, path = small(), tmp_path / "model.onnx"
    export_onnx(model, path, example(), preprocess="normalize", preprocessing=NORMALIZED, precision=precision)
    batch = pixels(12, 12, 3)
    with torch.no_grad():
        expected = model(NORMALIZED.normalize(batch.permute(0, 3, 1, 2).contiguous()))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(run(path, batch), expected, **tolerance)


def test_a_resizing_file_takes_any_size_and_batch(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "model.onnx"
    export_onnx(model, path, example(), preprocess="resize", preprocessing=NORMALIZED)
    front = PixelInput(NORMALIZED, resize=True, normalize=True)
    for height, width, count in [(12, 12, 1), (200, 31, 3), (7, 90, 2), (1, 1, 1)]:
        batch = pixels(height, width, count)
        with torch.no_grad():
            torch.testing.assert_close(run(path, batch), model(front(batch)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [("bilinear", True), ("bicubic", True), ("bilinear", False)], ids=str)
def test_a_file_for_pictures_of_one_size_computes_no_sizes(how: tuple[str, bool], tmp_path: Path) -> None:
    """What OpenCV 4.13, tract and OpenVINO 2023 refuse is the arithmetic on sizes; both files compute the same."""
    wanted = dataclasses.replace(NORMALIZED, interpolation=how[0], antialias=how[1])
    model, path = small(), tmp_path / "model.onnx"
    export_onnx(model, path, example(), preprocess="resize", picture_size=(20, 31), preprocessing=wanted)
    graph = onnx.load(path).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"Shape", "Range", "Div", "Floor", "Min"}
    assert [node.op_type for node in graph.node].count("MatMul") == 2
    assert read_metadata(path)["input"]["shape"] == ["batch", 20, 31, 3]
    batch = pixels(20, 31, 3)
    with torch.no_grad():
        expected = model(PixelInput(wanted, resize=True, normalize=True)(batch))
    torch.testing.assert_close(run(path, batch), expected, rtol=1e-4, atol=1e-5)
    evaluator = onnx.reference.ReferenceEvaluator(str(path))
    torch.testing.assert_close(torch.from_numpy(evaluator.run(None, {"input": batch.numpy()})[0]), expected, rtol=1e-4, atol=1e-5)
    assert verify_file(path).passed


class First(nn.Module):
    """A convolution over the input, padded or not."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu().mean((2, 3))


@pytest.mark.parametrize("padding", [0, 1])
def test_normalisation_is_folded_where_that_is_exact(padding: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = export_onnx(First(padding).eval(), path, example(), preprocess="normalize", preprocessing=NORMALIZED)
    (fold,) = [one for one in report.passes if one.name == "fold_input_normalization"]
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert fold.fired == (0 if padding else 1)
    assert ("Mul" in kinds, "Add" in kinds) == (bool(padding), bool(padding))
    assert {node.domain for node in onnx.load(path).graph.node} == {""}


def test_another_input_size_takes_its_preprocessing_along(tmp_path: Path) -> None:
    export_onnx(create_model("resnet18_cifar10"), tmp_path / "m.onnx", torch.rand(1, 3, 48, 48), preprocess="normalize")
    source = read_metadata(tmp_path / "m.onnx")["input"]
    assert source["shape"] == ["batch", 48, 48, 3]
    assert (source["preprocessing"]["resize"], source["preprocessing"]["crop"]) == (48, [48, 48])


def test_a_changed_golden_picture_is_noticed(tmp_path: Path) -> None:
    from fastcnn.export.container import read_container
    from fastcnn.export.seal import seal

    path = tmp_path / "model.onnx"
    export_onnx(small(), path, example(), preprocess="normalize", preprocessing=NORMALIZED)
    container, metadata = read_container(path)
    metadata["golden"]["batches"][0]["pictures"] = [1]
    container.write(path, seal(metadata))
    assert any("relative error" in failure for failure in verify_file(path).failures)


BAD = {
    "no description": ({"preprocess": "normalize"}, "small does not say how a picture becomes its input"),
    "other channels": (
        {"preprocessing": Preprocessing("L", 14, (12, 12), mean=(0.5,), std=(1.0,))},
        "preprocessing for L pictures does not fit small",
    ),
    "lanczos inside": (
        {"preprocess": "resize", "preprocessing": dataclasses.replace(NORMALIZED, interpolation="lanczos")},
        "cannot resize by lanczos",
    ),
    "aliased bicubic": (
        {"preprocess": "resize", "preprocessing": dataclasses.replace(NORMALIZED, interpolation="bicubic", antialias=False)},
        "cannot resize by bicubic without antialias",
    ),
    "padding": ({"preprocess": "resize", "preprocessing": dataclasses.replace(NORMALIZED, resize=10)}, "a file cannot pad"),
    "a picture size without a resize": ({"preprocess": "normalize", "picture_size": (20, 20)}, "it goes with --preprocess resize"),
    "no picture size": ({"preprocess": "resize", "picture_size": (0, 20)}, r"a height and a width from 1; it is \(0, 20\)"),
    "nothing to resize": ({"preprocess": "resize", "preprocessing": dataclasses.replace(NORMALIZED, resize=None)}, "resizes nothing"),
}


@pytest.mark.parametrize(("options", "said"), BAD.values(), ids=BAD)
def test_what_a_file_cannot_do_is_refused(options: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said):
        export_onnx(small(), tmp_path / "model.onnx", example(), **options)
    assert not list(tmp_path.iterdir())


def test_unknown_preprocess(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean normalize"):
        export_onnx(small(), tmp_path / "model.onnx", example(), preprocess="normalise")
