"""One interface over models, modules and files: the same answers from each, and no file fed what it does not take."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_networks import EXPORTERS, SUFFIX
from PIL import Image
from torch import nn

import fastcnn
from fastcnn.errors import FileFormatError, InputError, RequestError, UnknownNameError
from fastcnn.export.container import read_container
from fastcnn.models import create_model
from fastcnn.prediction.loading import load_predictor
from fastcnn.preprocessing import Preprocessing

DIGIT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (34, 40, 3), dtype=np.uint8)).resize((90, 70), Image.Resampling.BICUBIC)
EXAMPLE = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def expected(model: nn.Module, image: Image.Image = DIGIT) -> np.ndarray:
    with torch.no_grad():
        return model(model.fastcnn_info.preprocessing(image)[None]).numpy()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return create_model("simple_cnn", seed=1)


@pytest.fixture(scope="module", params=["onnx-none", "onnx-normalize", "onnx-resize", "torchscript-normalize", "pt2-resize"])
def exported(request: pytest.FixtureRequest, model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """(format, preprocess, file with a fixed batch of 3)."""
    format_, _, preprocess = request.param.partition("-")
    path = tmp_path_factory.mktemp("files") / f"simple{SUFFIX[format_]}"
    EXPORTERS[format_](model, path, EXAMPLE, preprocess=preprocess, batch_size=3, softmax=preprocess == "resize")
    return format_, preprocess, path


def test_every_file_answers_like_its_model_and_fills_its_batch(exported: tuple[str, str, Path], model: nn.Module) -> None:
    _, preprocess, path = exported
    predictor = load_predictor(path)
    assert (predictor.in_file, predictor.batch_size, predictor.name) == (preprocess, 3, "simple_cnn")
    assert predictor.preprocessing == model.fastcnn_info.preprocessing
    images = [DIGIT, DIGIT.transpose(Image.Transpose.ROTATE_90), DIGIT.convert("L"), DIGIT.crop((5, 5, 60, 60))]
    outputs = predictor.run([predictor.prepare(image) for image in images])
    wanted = torch.softmax(torch.from_numpy(np.concatenate([expected(model, image) for image in images])).double(), 1).numpy()
    # In the file, resizing does not round to whole levels.
    tolerance = {"rtol": 0.02, "atol": 2e-3} if preprocess == "resize" else {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(predictor.probabilities(outputs), wanted, **tolerance)


@pytest.mark.parametrize("backend", ["reference", None, "onnxruntime", "openvino"])
def test_models_by_name_and_as_modules(backend: str | None, model: nn.Module) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    named, given = load_predictor("simple_cnn", seed=1, backend=backend), load_predictor(model, backend=backend)
    assert named.runtime == given.runtime == (backend or "torch")
    for predictor in (named, given):
        np.testing.assert_allclose(predictor.run([predictor.prepare(DIGIT)] * 2)[1:], expected(model), rtol=1e-4, atol=1e-6)


def test_saved_modules_keep_their_preprocessing(model: nn.Module, tmp_path: Path) -> None:
    fast = fastcnn.optimize(model, EXAMPLE, backend="torch")
    for name in ("fast.safetensors", "simple.fast", "without an ending"):
        predictor = load_predictor(fastcnn.save(fast, tmp_path / name))
        assert predictor.preprocessing == model.fastcnn_info.preprocessing
        np.testing.assert_allclose(predictor.run([predictor.prepare(DIGIT)]), expected(model), rtol=1e-4, atol=1e-6)


def test_the_look_up_is_the_computation_bit_for_bit() -> None:
    predictor = load_predictor("resnet18_cifar10", backend="reference")
    np.testing.assert_array_equal(predictor.prepare(DIGIT), predictor.preprocessing(DIGIT).numpy())


def test_channel_order_stays_that_of_the_model(model: nn.Module) -> None:
    predictor = load_predictor("resnet18_cifar10", backend="reference")
    swapped = dataclasses.replace(
        predictor, preprocessing=dataclasses.replace(predictor.preprocessing, channels="BGR", mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    plain = dataclasses.replace(swapped, preprocessing=dataclasses.replace(swapped.preprocessing, channels="RGB"))
    np.testing.assert_array_equal(swapped.prepare(DIGIT), plain.prepare(DIGIT)[::-1])
    for in_file in ("normalize", "resize"):
        pixels = [dataclasses.replace(one, in_file=in_file).prepare(DIGIT) for one in (swapped, plain)]
        np.testing.assert_array_equal(pixels[0], pixels[1][..., ::-1])


# -- fed something else ------------------------------------------------------------------------------------------------


def test_other_pictures_than_the_preprocessing_gives_are_refused(exported: tuple[str, str, Path]) -> None:
    _, preprocess, path = exported
    predictor = load_predictor(path)
    good = predictor.prepare(DIGIT)
    wrong_dtype = good.astype(np.float64) if preprocess == "none" else good.astype(np.float32)
    for wrong in (wrong_dtype, good[None], good[..., None], np.concatenate([good, good], axis=0 if preprocess == "none" else 2)):
        with pytest.raises(InputError, match=r"takes pictures of .* use prepare\(\)"):
            predictor.run([good, wrong])
    if preprocess == "none":
        with pytest.raises(InputError, match="scaled or normalised in another way"):
            predictor.run([good * 255])


def rewrite(path: Path, to: Path, **changes: object) -> Path:
    """A copy of a file with other entries in metadata["input"]."""
    container, metadata = read_container(path)
    metadata["input"] |= changes
    container.write(to, metadata)
    return to


@pytest.fixture(scope="module")
def onnx_file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return EXPORTERS["onnx"](model, tmp_path_factory.mktemp("onnx") / "model.onnx", EXAMPLE).path


def test_a_description_that_does_not_fit_the_file_is_noticed(onnx_file: Path, tmp_path: Path, model: nn.Module) -> None:
    own = model.fastcnn_info.preprocessing
    other_size = rewrite(onnx_file, tmp_path / "size.onnx", preprocessing=own.at_size(32, 32).to_dict())
    with pytest.raises(InputError, match="takes pictures of 1×28×28, but its preprocessing gives 1×32×32"):
        load_predictor(other_size)
    with pytest.raises(FileFormatError, match="takes float32, but its description says uint8"):
        load_predictor(rewrite(onnx_file, tmp_path / "dtype.onnx", preprocessing_in_file="normalize"))
    with pytest.raises(RequestError, match="lacks crop"):
        load_predictor(
            rewrite(onnx_file, tmp_path / "part.onnx", preprocessing={key: value for key, value in own.to_dict().items() if key != "crop"})
        )


def test_files_from_before_the_description(onnx_file: Path, tmp_path: Path, model: nn.Module) -> None:
    container, metadata = read_container(onnx_file)
    del metadata["input"]["preprocessing"], metadata["input"]["preprocessing_in_file"]
    container.write(tmp_path / "old.onnx", metadata)
    assert load_predictor(tmp_path / "old.onnx").preprocessing == model.fastcnn_info.preprocessing


def test_a_source_that_does_not_say_how_is_refused_until_told(caplog: pytest.LogCaptureFixture) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(RequestError, match=r"does not say how a picture .* --preprocessing FILE .* with channels, resize, crop, .*, mean, std"):
        load_predictor(plain)
    told = Preprocessing("RGB", 20, (16, 16))
    assert load_predictor(plain, preprocessing=told).run([told(DIGIT).numpy()]).shape == (1, 4)
    with caplog.at_level("WARNING", "fastcnn"):
        load_predictor("resnet18_cifar10", backend="reference", preprocessing=Preprocessing("RGB", 32, (32, 32)))
    assert "was made for another preprocessing than the one given" in caplog.text


def test_what_cannot_predict_is_one_clear_line(tmp_path: Path, onnx_file: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean simple_cnn"):
        load_predictor("simple_cn")
    with pytest.raises(RequestError, match="does not exist"):
        load_predictor(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(FileFormatError, match="neither ONNX"):
        load_predictor(tmp_path / "text.onnx")
    with pytest.raises(UnknownNameError, match="runtime of onnx files 'torch'"):
        load_predictor(onnx_file, backend="torch")
    with pytest.raises(RequestError, match="holds its weights already"):
        load_predictor(onnx_file, weights="mnist")
    with pytest.raises(RequestError, match="in training mode"):
        load_predictor(create_model("simple_cnn").train())
    misnamed = load_predictor(onnx_file, categories=["a", "b", "c"])
    with pytest.raises(RequestError, match="3 class names do not fit simple_cnn, which has 10 classes"):
        misnamed.run([misnamed.prepare(DIGIT)])
    segmenter = load_predictor(nn.Conv2d(3, 4, 3).eval(), backend="reference", preprocessing=Preprocessing("RGB", 20, (16, 16)))
    with pytest.raises(RequestError, match="is no classifier of pictures"):
        segmenter.run([segmenter.prepare(DIGIT)])


def test_no_pictures_give_no_rows(onnx_file: Path) -> None:
    assert load_predictor(onnx_file).run([]).shape[0] == 0
    json.dumps(load_predictor(onnx_file).preprocessing.to_dict())


def test_options_of_a_model(tmp_path):
    torch.save(create_model("simple_cnn", num_classes=4).state_dict(), tmp_path / "w.pth")
    predictor = load_predictor("simple_cnn", weights=str(tmp_path / "w.pth"), backend="reference", options={"num_classes": 4})
    assert predictor.run([predictor.prepare(DIGIT)]).shape == (1, 4)
    with pytest.raises(RequestError, match="num_classes cannot be chosen here: SimpleCNN is a finished model"):
        load_predictor(create_model("simple_cnn"), options={"num_classes": 4})
    with pytest.raises(RequestError, match=r"num_classes cannot be chosen here: .*m\.onnx is a finished model"):
        load_predictor(tmp_path / "m.onnx", options={"num_classes": 4})


def test_a_module_runs_on_the_device_asked_for_and_stays_where_it_is(model: nn.Module) -> None:
    predictor = load_predictor(model, backend="reference", device="meta")
    with pytest.raises(NotImplementedError, match="meta"):  # the answers of that device hold no data to bring back
        predictor.run([predictor.prepare(DIGIT)])
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_answers_on_a_gpu_are_those_of_the_cpu(backend: str, model: nn.Module) -> None:
    predictor = load_predictor(model, backend=backend, device="cuda")
    np.testing.assert_allclose(predictor.run([predictor.prepare(DIGIT)]), expected(model), rtol=1e-4, atol=1e-5)


def test_an_exported_file_is_for_the_cpu(exported: tuple[str, str, Path]) -> None:
    with pytest.raises(RequestError, match=r"runs on the CPU, not on cuda: give the model that it was made from"):
        load_predictor(exported[2], device="cuda")
    assert load_predictor(exported[2], device="cpu").name == "simple_cnn"
