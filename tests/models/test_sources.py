"""What a MODEL on the command line may be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torchvision

from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.models.request import ModelRequest, parse_input_shape
from fastcnn.models.sources import Kind, library_names, read_model_text


@pytest.mark.parametrize(
    ("given", "kind", "text", "stem"),
    [
        ("ResNet50", Kind.own, "resnet50", "resnet50"),
        ("Inception-V3", Kind.own, "inception_v3", "inception_v3"),
        ("torchvision:MobileNet-V3-Large", Kind.torchvision, "torchvision:mobilenet_v3_large", "mobilenet_v3_large"),
        ("Timm:EfficientNet_B0", Kind.timm, "timm:efficientnet_b0", "efficientnet_b0"),
        ("timm:resnet50.a1_in1k", Kind.timm, "timm:resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("package.module:Net", Kind.code, "package.module:Net", "Net"),
        ("package.module:Zoo.small", Kind.code, "package.module:Zoo.small", "small"),
    ],
)
def test_kinds(given, kind, text, stem):
    found = read_model_text(given)
    assert (found.kind, found.text, found.stem) == (kind, text, stem)


def test_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("net.py", "net.pt2", "net.onnx", "net.pth", "resnet50"):
        (tmp_path / name).touch()
    kinds = {name: read_model_text(name).kind for name in ("net.pt2", "net.onnx", "net.pth", "resnet50", "net.py:build")}
    assert list(kinds.values()) == [Kind.program, Kind.onnx, Kind.weights, Kind.weights, Kind.code]
    whole = read_model_text(f"{tmp_path}/net.py:build")
    assert (whole.where, whole.name, whole.title) == (f"{tmp_path}/net.py", "build", "net.py:build")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mobilenet_v3_large", "did you mean torchvision:mobilenet_v3_large?"),
        ("MobileNet-V3-large", "did you mean torchvision:mobilenet_v3_large?"),
        ("efficientnet_b0", "did you mean torchvision:efficientnet_b0 or timm:efficientnet_b0?"),
        ("restnet50", "did you mean resnet50 or "),
        ("torchvision:mobilnet_v2", "did you mean torchvision:mobilenet_v2"),
        ("quite_another_thing", "`fastcnn list` shows the names"),
        ("gone.pt2", "gone.pt2 does not exist"),
        ("gone.py:build", "gone.py does not exist"),
        ("gone/net", "gone/net does not exist"),
        ("a module:build", "what stands before the colon"),
        ("module:a function", "what stands after the colon"),
    ],
)
def test_what_means_no_model(given, said):
    with pytest.raises(RequestError) as refusal:
        read_model_text(given)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_nothing_far_away_is_suggested():
    with pytest.raises(UnknownNameError) as refusal:
        read_model_text("quite_another_thing")
    assert refusal.value.near == []


def test_names_are_those_that_the_libraries_list():
    assert sorted(library_names("torchvision")) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert sorted(library_names("timm")) == sorted(timm.list_models())


def test_a_text_is_told_without_pytorch():
    script = """
import sys
from fastcnn.errors import RequestError
from fastcnn.models.sources import read_model_text
read_model_text("timm:resnet18"), read_model_text("net.module:build")
try:
    read_model_text("resnet51x")
except RequestError:
    print(sorted({"torch", "timm", "torchvision", "net"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_file_takes_no_options_of_a_model(tmp_path):
    (tmp_path / "net.pt2").touch()
    with pytest.raises(RequestError, match="--num-classes is for the name of a model"):
        ModelRequest(str(tmp_path / "net.pt2"), num_classes=5).read()


def test_input_shapes():
    assert parse_input_shape("3x224×192") == parse_input_shape("3, 224,192") == (3, 224, 192)
    for text in ("3x", "x", "3x0", "3x-1", "big"):
        with pytest.raises(RequestError, match="--input-shape is the sizes of one input"):
            parse_input_shape(text)
    assert ModelRequest.from_dict({"model": "resnet18", "input_shape": [3, 8, 8]}) == ModelRequest("resnet18", input_shape=(3, 8, 8))
