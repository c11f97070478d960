"""One description of preprocessing: bit for bit torchvision's, for pictures of every kind, and stable as data."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.models
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms._presets import ImageClassification

from fastcnn.errors import InputError, RequestError
from fastcnn.models import create_model, list_models, model_spec
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.pictures import to_mode
from fastcnn.preprocessing import INTERPOLATIONS, Preprocessing

SMALL = Preprocessing("RGB", 20, (16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
PUBLISHED = [
    (name, member) for name in list_models() if model_spec(name).torchvision_weights for member in torchvision.models.get_model_weights(name)
]


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids=[f"{name}-{weights.name}" for name, weights in PUBLISHED])
def test_presets_of_torchvision_bit_for_bit(name, weights):
    preset = weights.transforms()
    own = Preprocessing.from_torchvision(preset)
    image = picture(517, 401)
    assert torch.equal(own(image), preset(image))
    if weights is torchvision.models.get_model_weights(name).DEFAULT:
        assert own == model_spec(name).preprocessing


@pytest.mark.parametrize("size", [(517, 401), (401, 517), (341, 342), (299, 299), (90, 61), (1, 3), (1600, 40)], ids=str)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_sizes_bit_for_bit(size, interpolation):
    mode = torchvision.transforms.InterpolationMode(interpolation)
    preset = ImageClassification(crop_size=65, resize_size=72, interpolation=mode)
    assert torch.equal(Preprocessing.from_torchvision(preset)(picture(*size)), preset(picture(*size)))


@pytest.mark.parametrize("size", [(517, 401), (64, 65), (65, 64), (40, 90), (91, 30), (7, 5), (1, 3)], ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("resize", "crop"),
    [*itertools.product([None, 64, 71, (64, 65), (80, 33)], [(64, 65), (33, 20), (95, 18)]), ((64, 65), None), ((80, 33), None)],
    ids=str,
)
def test_pillow_and_numpy_do_what_torchvision_does_to_pictures(size, interpolation, resize, crop):
    for channels, image in (("RGB", picture(*size)), ("BGR", picture(*size)), ("L", picture(*size, mode="L"))):
        wanted = image
        if resize is not None:
            sides = [resize] if isinstance(resize, int) else list(resize)
            wanted = F.resize(wanted, sides, InterpolationMode(interpolation))
        if crop is not None:
            wanted = F.center_crop(wanted, list(crop))
        wanted = F.pil_to_tensor(wanted)
        statistics = {"mean": (0.0,), "std": (1.0,)} if channels == "L" else {}
        pixels = Preprocessing(channels, resize, crop, interpolation, **statistics).pixels(image)
        assert torch.equal(pixels, wanted.flip(0) if channels == "BGR" else wanted)
        assert pixels.is_contiguous()


@pytest.mark.parametrize("name", ["resnet50", "inception_v4", "simple_cnn", "vgg_cifar10"])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.1, 0.7)], ids=str)
def test_the_table_of_levels_is_the_normalisation_bit_for_bit(name, value_range):
    own = dataclasses.replace(model_spec(name).preprocessing, value_range=value_range)
    levels = torch.arange(256, dtype=torch.uint8).expand(own.channel_count, 1, 256)
    assert torch.equal(torch.from_numpy(own.level_table()), own.normalize(levels)[:, 0])


def test_pixels_need_no_torch():
    code = """
import sys
import numpy as np
from PIL import Image
from fastcnn.models import model_spec
own = model_spec("resnet50").preprocessing
print(own.levels(Image.new("RGB", (300, 400))).shape, own.level_table().shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(3, 224, 224) (3, 256) False"


def test_without_antialias_is_what_torchvision_does_to_tensors():
    preset = ImageClassification(crop_size=32, resize_size=40, antialias=False)
    image = picture(300, 200)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    own = Preprocessing.from_torchvision(preset)
    assert not own.antialias
    assert torch.equal(own(image), preset(pixels))
    assert not torch.equal(own(image), dataclasses.replace(own, antialias=True)(image))


def test_input_of_every_model_has_its_size():
    for name in list_models():
        spec = model_spec(name)
        assert spec.preprocessing.output_shape == spec.input_size, name


def test_normalization_of_a_batch_is_that_of_each_picture():
    pixels = torch.stack([SMALL.pixels(picture(30, 40, seed=seed)) for seed in range(3)])
    assert pixels.dtype == torch.uint8
    assert torch.equal(SMALL.normalize(pixels)[1], SMALL(picture(30, 40, seed=1)))


def test_value_range_and_channel_order():
    image = picture(16, 16)
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    plain = Preprocessing("RGB", None, (16, 16), value_range=(0.0, 255.0))
    torch.testing.assert_close(plain(image), levels)
    swapped = Preprocessing("BGR", None, (16, 16), value_range=(-1.0, 1.0))
    torch.testing.assert_close(swapped(image), levels.flip(0) / 127.5 - 1)
    assert swapped.bounds() == ((-1.0, 1.0),) * 3


# -- pictures of every kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", ["RGB", "L"])
def test_every_mode_has_the_channels_asked_for(mode, channels):
    if mode in ("RGBa", "La"):
        image = picture(30, 20, "RGBA" if mode == "RGBa" else "LA").convert(mode)
    elif mode == "PA":
        image = picture(30, 20, "P").convert("PA")
    elif mode == "F":
        image = Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30))
    else:
        image = picture(30, 20, "L" if mode.startswith("I") else "RGB").convert(mode)
    described = Preprocessing(channels, 16, (16, 16), mean=(0.5,) * (1 if channels == "L" else 3), std=(1.0,) * (1 if channels == "L" else 3))
    result = described(image)
    assert result.shape == described.output_shape
    assert result.dtype == torch.float32


def test_conversions_that_lose_nothing_change_nothing():
    image = picture(30, 20)
    for other in (image.convert("RGBA"), Image.merge("RGBA", (*image.split(), Image.new("L", image.size, 255)))):
        assert torch.equal(SMALL(other), SMALL(image))
    grey = image.convert("L")
    sixteen = Image.fromarray(np.array(grey).astype(np.uint16) * 257)
    assert sixteen.mode.startswith("I")
    assert torch.equal(SMALL(sixteen), SMALL(grey))
    assert torch.equal(SMALL(Image.fromarray(np.array(grey).astype(np.float32) / 255)), SMALL(grey))


def test_transparent_parts_lie_on_white():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((1, 2), (7, 7, 7, 0))
    image.putpixel((3, 3), (0, 0, 0, 128))
    shown = np.array(to_mode(image, "RGB"))
    assert shown[2, 1].tolist() == [255, 255, 255]
    assert shown[0, 0].tolist() == [200, 0, 0]
    assert abs(int(shown[3, 3, 0]) - 127) <= 1
    palette = image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert np.array(to_mode(palette, "RGB"))[0, 0].tolist() == [255, 255, 255]


def test_values_without_a_known_range_are_refused():
    for values in (
        np.full((4, 4), 70000, np.int32),
        np.full((4, 4), -1, np.int32),
        np.full((4, 4), 1.5, np.float32),
        np.full((4, 4), np.nan, np.float32),
    ):
        with pytest.raises(InputError, match="they must lie in 0 to"):
            SMALL(Image.fromarray(values))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, tmp_path):
    upright = picture(40, 24)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        assert torch.equal(SMALL(image), SMALL(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    upright = picture(40, 24)
    upright.save(tmp_path / "x.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12nonsense")
    with Image.open(tmp_path / "x.png") as image:
        assert torch.equal(SMALL(image), SMALL(upright))


def test_a_strip_that_would_fill_the_memory_is_refused():
    with pytest.raises(InputError, match="20000×2 is too thin"):
        Preprocessing()(Image.new("RGB", (20000, 2)))


# -- as data -----------------------------------------------------------------------------------------------------------


def test_json_comes_back_equal_and_is_stable():
    for name in list_models():
        own = model_spec(name).preprocessing
        assert Preprocessing.from_dict(json.loads(own.to_json())) == own
        assert json.loads(own.to_json()) == own.to_dict()
    assert Preprocessing.from_dict(SMALL.to_dict()).to_json() == SMALL.to_json()
    assert SMALL.to_json() == (
        '{"channels": "RGB", "resize": 20, "crop": [16, 16], "interpolation": "bilinear", "antialias": true, '
        '"value_range": [0.0, 1.0], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}'
    )
    assert "20 on the short side (bilinear), cropped to 16×16" in SMALL.summary()


BAD = {
    "channels": ({"channels": "CMYK"}, "channels is 'RGB' or 'BGR' or 'L', not 'CMYK'"),
    "size that varies": ({"crop": None}, "give a crop"),
    "crop of one side": ({"crop": 224}, "crop is"),
    "resize of nothing": ({"resize": 0}, "a side is a whole number from 1, not 0"),
    "resize of words": ({"resize": "big"}, "resize is the length of the shorter side"),
    "interpolation": ({"interpolation": "linear"}, "interpolation is one of"),
    "lanczos aliased": ({"interpolation": "lanczos", "antialias": False}, "lanczos always filters"),
    "range": ({"value_range": (1.0, 0.0)}, "low below high"),
    "number of means": ({"mean": (0.5,)}, "mean is 3 numbers"),
    "mean of a grey model": ({"channels": "L"}, "mean is 1 number"),
    "std of zero": ({"std": (1.0, 0.0, 1.0)}, "std must be above 0"),
    "NaN": ({"mean": (float("nan"), 0.0, 0.0)}, "mean is 3 numbers"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_nonsense_is_refused(changes, said):
    with pytest.raises(RequestError, match=said):
        Preprocessing(**changes)
    with pytest.raises(RequestError, match=said):
        Preprocessing.from_dict(Preprocessing().to_dict() | changes)


def test_nothing_is_guessed_where_a_description_lacks_something():
    data = SMALL.to_dict()
    del data["antialias"]
    with pytest.raises(RequestError, match="lacks antialias"):
        Preprocessing.from_dict(data)
    with pytest.raises(RequestError, match="has unknown gamma"):
        Preprocessing.from_dict(SMALL.to_dict() | {"gamma": 2.2})
    with pytest.raises(RequestError, match="JSON object"):
        Preprocessing.from_dict([1, 2])


def test_another_size_keeps_the_proportion():
    assert Preprocessing().at_size(224, 224) == Preprocessing()
    larger = Preprocessing().at_size(448, 448)
    assert (larger.resize, larger.crop) == (512, (448, 448))
    exact = Preprocessing(resize=(10, 20), crop=None).at_size(7, 9)
    assert exact.output_shape == (3, 7, 9)


def test_description_of_models_and_old_metadata():
    model = create_model("simple_cnn")
    assert preprocessing_of(model) == preprocessing_of(model.fastcnn_info) == model_spec("simple_cnn").preprocessing
    old = {
        "model": {"name": "inception_v3"},
        "input": {"shape": ["batch", 3, 149, 149], "normalization": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}},
    }
    found = preprocessing_of(old)
    assert found == dataclasses.replace(model_spec("inception_v3").preprocessing.at_size(149, 149), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    old["model"]["name"] = "someone's own"
    assert preprocessing_of(old).resize == round(256 * 149 / 224)
    assert preprocessing_of({"model": {"name": "x"}, "input": {"shape": ["batch", 3, 8, 8], "normalization": None}}) is None
    assert preprocessing_of(torch.nn.ReLU()) is None


# -- fed something else ------------------------------------------------------------------------------------------------


def test_check_tells_other_preprocessing_apart():
    good = torch.stack([SMALL(picture(50, 40, seed=seed)) for seed in range(2)])
    SMALL.check(good)
    SMALL.check(good.half())
    SMALL.check(good[:0])
    for wrong, said in (
        (SMALL.normalize(torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)) * 255, "channel 0 runs from"),
        (torch.full((2, 3, 16, 16), 255, dtype=torch.uint8), "raw pixels go through normalize"),
        (good[:, :1], "expected pictures of N×3×16×16, got 2×1×16×16"),
        (good.transpose(1, 3), "N×3×16×16"),
        (torch.full((1, 3, 16, 16), float("nan")), "runs from nan"),
    ):
        with pytest.raises(InputError, match=said):
            SMALL.check(wrong)
    with pytest.raises(InputError, match="expected uint8 pixels"):
        SMALL.normalize(good)


def test_import_needs_neither_torch_nor_pillow():
    code = "import sys, fastcnn.preprocessing, fastcnn.models.registry; sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
