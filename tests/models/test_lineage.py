"""For which input weights were trained, and that a model by name and from a file answer alike."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torchvision.models._api import WeightsEnum

from fastcnn.export import export_onnx
from fastcnn.models import create_model, create_untrained_model, load_weights, model_spec
from fastcnn.models.lineage import input_statistics, published_twin, with_transform_input
from fastcnn.prediction.loading import load_predictor
from fastcnn.preprocessing import Preprocessing

TRUNK = "weights/inception_v3_imagenet_trunk.safetensors"
HALF, MEAN, STD = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Four that scikit-image ships."""
    data = pytest.importorskip("skimage.data", reason="scikit-image ships the photographs")
    return [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]


@pytest.fixture(scope="module")
def trained(shared_dir) -> dict[str, torch.Tensor]:
    """A whole state dict of Inception-v3: the trained trunk, with heads that are drawn."""
    return {**create_model("inception_v3", seed=5).state_dict(), **{key: tensor.float() for key, tensor in load_file(shared_dir / TRUNK).items()}}


@pytest.fixture
def published(monkeypatch, trained) -> None:
    """torchvision's name of weights gives the trained trunk."""
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda entry, *args, **kwargs: trained)


def answers(model: torch.nn.Module, pictures: list[Image.Image], size: int = 139) -> torch.Tensor:
    """Through the preprocessing that the model's own record describes."""
    preprocessing = model.fastcnn_info.preprocessing.at_size(size, size)
    with torch.no_grad():
        return model(torch.stack([preprocessing(picture) for picture in pictures]))


def saved(state, path, **metadata):
    torch.save(state, path)
    return path


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("options", [{}, {"transform_input": True}, {"transform_input": False}], ids=str)
def test_by_name_and_from_a_file_the_answers_are_the_same(tmp_path, trained, photographs, options):
    """Before, a file gave features that were two thirds off: ImageNet's normalisation for a network that takes [-1, 1]."""
    by_name = create_model("inception_v3", "DEFAULT")
    from_file = create_model("inception_v3", saved(trained, tmp_path / "w.pth"), **options)
    assert by_name.transform_input
    assert from_file.transform_input == options.get("transform_input", False)
    expected = answers(by_name, photographs)
    # Two roads to the same input differ by the rounding of the normalisation, which 94 layers carry on.
    torch.testing.assert_close(answers(from_file, photographs), expected, rtol=0, atol=1e-4 * float(expected.std()))
    assert torch.equal(answers(from_file, photographs).argmax(1), expected.argmax(1))
    wrong = create_model("inception_v3", tmp_path / "w.pth", transform_input=False)
    wrong.fastcnn_info.__dict__["preprocessing"] = by_name.fastcnn_info.preprocessing
    assert (answers(wrong, photographs) - expected).norm() > 0.3 * expected.norm()


@pytest.mark.slow
@pytest.mark.usefixtures("published")
def test_predicted_and_exported_the_answers_are_the_same(tmp_path, trained, photographs):
    """`predict` with the weights by name and as a file, and a file exported with each --preprocess, at the model's own size."""
    path = saved(trained, tmp_path / "w.pth")
    named = load_predictor("inception_v3", weights="DEFAULT", backend="reference")
    filed = load_predictor("inception_v3", weights=str(path), backend="reference")
    expected = named.run([named.prepare(picture) for picture in photographs])
    tolerance = 1e-4 * float(expected.std())
    np.testing.assert_allclose(filed.run([filed.prepare(picture) for picture in photographs]), expected, rtol=0, atol=tolerance)
    model = create_model("inception_v3", path)
    for preprocess in ("none", "normalize", "resize"):
        export_onnx(model, tmp_path / f"{preprocess}.onnx", torch.rand(1, 3, 299, 299), preprocess=preprocess, batch_size=1)
        exported = load_predictor(tmp_path / f"{preprocess}.onnx")
        outputs = exported.run([exported.prepare(picture) for picture in photographs])
        assert (outputs.argmax(1) == expected.argmax(1)).all()
        # A resize inside the file rounds to whole levels in other places than Pillow does.
        share = 0.02 if preprocess == "resize" else 1e-3
        assert np.linalg.norm(outputs - expected) < share * np.linalg.norm(expected), preprocess


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_both_options_record_the_same_input(name):
    bare, transformed = create_model(name), create_model(name, transform_input=True)
    assert (bare.fastcnn_info.mean, bare.fastcnn_info.std) == (HALF, HALF)
    assert (transformed.fastcnn_info.mean, transformed.fastcnn_info.std) == (MEAN, STD)
    picture = Image.effect_mandelbrot((160, 140), (-2.0, -1.2, 0.8, 1.2), 60).convert("RGB")
    torch.testing.assert_close(answers(bare, [picture]), answers(transformed, [picture]), rtol=1e-4, atol=1e-4)


def test_other_models_keep_their_preprocessing():
    assert create_model("resnet18").fastcnn_info.preprocessing == model_spec("resnet18").preprocessing
    assert create_model("inception_v4").fastcnn_info.mean == HALF


def test_adding_and_removing_the_transform():
    imagenet = Preprocessing(mean=MEAN, std=STD)
    bare = with_transform_input(imagenet, False)
    assert (bare.mean, bare.std) == (pytest.approx(HALF), pytest.approx(HALF))
    other = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    back = with_transform_input(with_transform_input(other, True), False)
    assert (back.mean, back.std) == (pytest.approx(other.mean), pytest.approx(other.std))


def trunk_of(weight: torch.Tensor, pictures: list[Image.Image], preprocessing: Preprocessing) -> dict[str, torch.Tensor]:
    """A first layer whose BatchNorm has seen the pictures."""
    outputs = F.conv2d(torch.stack([preprocessing(picture) for picture in pictures]), weight, stride=2)
    statistics = {"running_mean": outputs.mean((0, 2, 3)), "running_var": outputs.var((0, 2, 3))}
    return {"stem.conv.weight": weight, **{f"stem.bn.{name}": tensor for name, tensor in statistics.items()}}


class TestStatistics:
    """What the first BatchNorm tells about the input."""

    @pytest.mark.parametrize(
        ("mean", "std", "range_"),
        [(HALF, HALF, "[-1, 1]"), (MEAN, STD, "ImageNet"), ((0, 0, 0), (1, 1, 1), None)],
        ids=["[-1, 1]", "ImageNet", "[0, 1]"],
    )
    @pytest.mark.parametrize("kernel", [3, 7])
    def test_they_give_back_the_mean_and_the_deviation(self, photographs, mean, std, range_, kernel):
        preprocessing = Preprocessing(mean=mean, std=std)
        weight = 0.1 * torch.randn(48, 3, kernel, kernel, generator=torch.Generator().manual_seed(kernel))
        seen = input_statistics(trunk_of(weight, photographs, preprocessing))
        pixels = torch.stack([preprocessing(picture) for picture in photographs])
        assert seen.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=0.05 * float(pixels.std()))
        assert seen.deviation == pytest.approx(float(pixels.std()), rel=0.3)
        assert seen.range == range_

    def test_random_and_fresh_statistics_tell_nothing(self):
        for name in ("inception_v3", "googlenet"):
            assert input_statistics(create_model(name, seed=3).state_dict()) is None
            assert input_statistics(create_untrained_model(name).state_dict()) is None
        assert input_statistics({}) is None
        assert input_statistics(create_model("alexnet").state_dict()) is None

    def test_of_the_trained_trunk(self, trained):
        """Its first layer saw [0, 1]: a mean of 0.5 and a deviation of 0.3, which is neither convention of these networks."""
        seen = input_statistics(trained)
        assert seen.mean == pytest.approx((0.59, 0.52, 0.49), abs=0.01)
        assert seen.deviation == pytest.approx(0.3, abs=0.03)
        assert seen.range is None


class TestAFileThatDoesNotSay:
    """`create_model` looks at it, records what it found, and warns of what it assumes."""

    def build(self, tmp_path, weight, photographs, preprocessing, **options):
        state = create_model("inception_v3", num_classes=3).state_dict()
        first = trunk_of(weight, photographs, preprocessing)
        state |= {f"Conv2d_1a_3x3.{key.removeprefix('stem.')}": tensor for key, tensor in first.items()}
        return create_model("inception_v3", saved(state, tmp_path / "w.pth"), num_classes=3, **options)

    @pytest.fixture
    def weight(self):
        return 0.1 * torch.randn(32, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("stats", [(HALF, HALF), (MEAN, STD)], ids=["[-1, 1]", "ImageNet"])
    def test_recognised(self, tmp_path, weight, photographs, stats, caplog):
        caplog.set_level(logging.INFO)
        model = self.build(tmp_path, weight, photographs, Preprocessing(mean=stats[0], std=stats[1]))
        assert (model.fastcnn_info.mean, model.fastcnn_info.std) == stats
        assert not model.transform_input
        assert "its first layer saw mean" in caplog.text
        assert all(record.levelno == logging.INFO for record in caplog.records)

    def test_neither_is_a_warning(self, tmp_path, weight, photographs, caplog):
        model = self.build(tmp_path, weight, photographs, Preprocessing())
        assert (model.fastcnn_info.mean, model.fastcnn_info.std) == (HALF, HALF)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "[-1, 1] (mean = std = 0.5) is assumed, although its first layer was trained on input of mean" in record.getMessage()

    def test_nothing_to_be_seen_is_a_warning(self, tmp_path, caplog):
        path = saved(create_model("googlenet", num_classes=3).state_dict(), tmp_path / "w.pth")
        assert create_model("googlenet", path, num_classes=3).fastcnn_info.mean == HALF
        assert "does not say how its pictures were normalised: [-1, 1] (mean = std = 0.5) is assumed;" in caplog.text

    @pytest.mark.parametrize(("choice", "stats"), [(False, (HALF, HALF)), (True, (MEAN, STD))])
    def test_a_choice_settles_it(self, tmp_path, weight, photographs, choice, stats, caplog):
        model = self.build(tmp_path, weight, photographs, Preprocessing(), transform_input=choice)
        assert (model.fastcnn_info.mean, model.fastcnn_info.std) == stats
        assert not caplog.records

    def test_weights_loaded_into_a_model_that_exists(self, tmp_path, weight, photographs):
        path = saved(self.build(tmp_path, weight, photographs, Preprocessing(mean=MEAN, std=STD)).state_dict(), tmp_path / "v.pth")
        model = load_weights(create_model("inception_v3", num_classes=3), path)
        assert (model.fastcnn_info.mean, model.fastcnn_info.std) == (MEAN, STD)


def test_a_download_of_torchvision_is_known_whatever_it_is_called(tmp_path, monkeypatch, caplog):
    """By its SHA-256, of which the address holds eight digits; then it is the same as by name."""
    import torchvision

    enum = torchvision.models.get_model_weights("googlenet")
    path = saved(create_model("googlenet").state_dict(), tmp_path / "mine.pth")
    assert published_twin(path, enum) is None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(enum.IMAGENET1K_V1._value_.__dict__, "url", f"https://example.org/googlenet-{digest[:8]}.pth")
    info = create_model("googlenet", path).fastcnn_info
    assert info.options["transform_input"] is True
    assert (info.mean, info.std) == (MEAN, STD)
    assert len(info.categories) == 1000
    assert info.weights == "file: mine.pth, torchvision's GoogLeNet_Weights.IMAGENET1K_V1"
    assert not caplog.records
