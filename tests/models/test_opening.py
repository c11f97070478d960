"""From what was asked for on a command line to a module, whoever wrote it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from fastcnn.errors import FileFormatError, RequestError, UnknownNameError, WeightsError
from fastcnn.models.opening import example_input, input_size_of, open_model
from fastcnn.models.request import ModelRequest
from fastcnn.preprocessing import Preprocessing

NET = """
import helper
from torch import nn

class Net(nn.Module):
    def __init__(self, classes: int = 4, in_chans=3):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(in_chans, 6, 3, 2), nn.BatchNorm2d(6), nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))

def build(num_classes=4, **more):
    return helper.checked(Net(num_classes, **more))

def no_module():
    return 3

def broken():
    raise ValueError("no data\\nat all")

ready = Net()
number = 3
"""


@pytest.fixture
def net(tmp_path, monkeypatch) -> Path:
    """net.py and what it imports from beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("net", "helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "helper.py").write_text("def checked(model): return model\n")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


def trained(model: nn.Module) -> nn.Module:
    """Other values than any initialisation gives."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def same(model: nn.Module, state) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], tensor) for key, tensor in state.items() if not key.endswith("num_batches_tracked"))


def test_torchvision():
    request = ModelRequest("torchvision:mobilenet_v3_small", num_classes=5, image_size=48)
    before = torch.random.get_rng_state()
    model = open_model(request)
    assert torch.equal(torch.random.get_rng_state(), before)
    info = model.fastcnn_info
    assert not model.training
    assert (info.name, info.input_size, dict(info.options)) == ("torchvision:mobilenet_v3_small", (3, 48, 48), {"num_classes": 5})
    declared = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.transforms()
    assert info.preprocessing == Preprocessing.from_torchvision(declared).at_size(48, 48)
    assert info.weights.startswith("random (seed 0)")
    outputs = model(example_input(model, request, 3))
    assert outputs.shape == (3, 5)
    assert same(open_model(request), model.state_dict())
    assert not same(open_model(ModelRequest("torchvision:mobilenet_v3_small", num_classes=5, seed=1)), model.state_dict())


def test_timm_with_its_own_preprocessing():
    model = open_model(ModelRequest("timm:test_efficientnet"))
    assert model.fastcnn_info.input_size == (3, 160, 160)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (197, 233, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(picture)
    torch.testing.assert_close(model.fastcnn_info.preprocessing(picture), theirs, atol=1e-6, rtol=0)


def test_timm_with_other_channels_declares_no_preprocessing():
    request = ModelRequest("timm:test_resnet", model_args=("in_chans=1", "num_classes=3"), image_size=32)
    model = open_model(request)
    assert input_size_of(model, request) == (1, 32, 32)
    assert model.fastcnn_info.preprocessing is None
    assert model(example_input(model, request)).shape == (1, 3)


def test_branches_that_begin_as_nothing_are_seen():
    """timm starts the last BatchNorm of a residual branch at zero: a wrong branch would change nothing."""
    model = open_model(ModelRequest("timm:test_resnet", image_size=32))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert min(norm.weight.detach().abs().max().item() for norm in norms) >= 0.1
    assert all(norm.running_mean.any() and norm.momentum == 0.1 for norm in norms)


@pytest.mark.parametrize(
    ("name", "options", "outputs"),
    [
        ("build", {"num_classes": 7}, 7),
        ("build", {"model_args": ("in_chans=1",), "input_shape": (1, 16, 16)}, 4),
        ("Net", {"model_args": ("classes=2",)}, 2),
        ("ready", {}, 4),
    ],
)
def test_code_of_the_users(net, caplog, name, options, outputs):
    caplog.set_level(logging.INFO)
    request = ModelRequest(f"{net}:{name}", **{"input_shape": (3, 16, 16), **options})
    model = open_model(request)
    assert not model.training
    assert model(example_input(model, request, 2)).shape == (2, outputs)
    assert f"runs the code of {net}:{name}" in caplog.text
    assert model.fastcnn_info.name == f"net.py:{name}", "the folders of this machine are nobody's business"


def test_a_module_of_a_package_beside(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    request = ModelRequest("net:Net", input_shape=(3, 16, 16), seed=3)
    assert open_model(request).fastcnn_info.name == "net:Net"
    assert same(open_model(request), open_model(request).state_dict())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("bild", {}, "has no 'bild'; it has Net, build, no_module, broken"),
        ("no_module", {}, "makes a int: a torch.nn.Module was expected"),
        ("number", {}, "is a int: name a function or a class"),
        ("broken", {}, "failed: ValueError: no data (net.py:20)"),
        ("Net", {"num_classes": 3}, "takes no num_classes; it takes classes, in_chans"),
        ("ready", {"num_classes": 3}, "is a finished module, which takes no options"),
        ("Net", {"model_args": ("classes=many",)}, "classes is a whole number, not 'many'"),
        ("Net", {"input_shape": None}, "does not say what its input is: give --input-shape"),
        ("Net", {"weights": "DEFAULT"}, "nobody publishes weights for net.py:Net"),
    ],
)
def test_code_that_cannot_be_used(net, name, options, said):
    with pytest.raises(RequestError) as refusal:
        open_model(ModelRequest(f"{net}:{name}", **{"input_shape": (3, 16, 16), **options}))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_code_that_cannot_be_imported(net):
    net.write_text("import torch\nimport there_is_no_such_package\n")
    with pytest.raises(
        RequestError, match=r"net.py cannot be imported: ModuleNotFoundError: No module named 'there_is_no_such_package' \(net.py:2\)"
    ):
        open_model(ModelRequest(f"{net}:build"))


@pytest.mark.parametrize("batch", [1, 2])
def test_programs_of_torch_export(tmp_path, batch):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    x = torch.rand(batch, 3, 9, 9)
    dynamic = ({0: torch.export.Dim("batch")},) if batch > 1 else None
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=dynamic), tmp_path / "net.pt2")
    request = ModelRequest(str(tmp_path / "net.pt2"))
    opened = open_model(request)
    assert input_size_of(opened, request) == (3, 9, 9)
    x = torch.rand(5, 3, 9, 9)
    torch.testing.assert_close(opened(x), model(x))


def test_files_from_which_no_model_comes(tmp_path):
    for name in ("net.onnx", "net.pt2", "net.pth"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(RequestError, match="is an ONNX file, from which PyTorch gets no model: give the model"):
        open_model(ModelRequest(str(tmp_path / "net.onnx")))
    with pytest.raises(FileFormatError, match="is no program of torch"):
        open_model(ModelRequest(str(tmp_path / "net.pt2")))
    with pytest.raises(RequestError, match="name the model, as in MODEL --weights"):
        open_model(ModelRequest(str(tmp_path / "net.pth")))


# -- weights -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_lightning(tmp_path, caplog):
    """The network stands under `model.`, beside a loss with weights and the arguments of the run."""
    caplog.set_level(logging.INFO)
    state = trained(timm.create_model("test_resnet", num_classes=5)).state_dict()
    content = {
        "state_dict": {**{f"model.{key}": tensor for key, tensor in state.items()}, "loss.weight": torch.ones(5)},
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
    }
    torch.save(content, tmp_path / "epoch=3.ckpt")
    weights = str(tmp_path / "epoch=3.ckpt")
    loaded = open_model(ModelRequest("timm:test_resnet", weights, num_classes=5))
    assert same(loaded, state)
    assert loaded.fastcnn_info.weights == "file: epoch=3.ckpt"
    assert "the model is what stands under 'model.'; 1 others, such as loss.weight, are left out" in caplog.text
    with pytest.raises(WeightsError, match=r"num_classes=5 \(--num-classes 5\) fits"):
        open_model(ModelRequest("timm:test_resnet", weights))


def test_a_checkpoint_with_two_models_in_it(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    both = {f"{part}.{key}": tensor for part in ("student", "teacher") for key, tensor in state.items()}
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds the model 2 times, under 'student\.' and 'teacher\.'"):
        open_model(ModelRequest("timm:test_resnet", str(tmp_path / "w.pth")))


def test_tensors_beside_other_things(tmp_path, net):
    state = trained(open_model(ModelRequest(f"{net}:build", input_shape=(3, 16, 16)))).state_dict()
    torch.save(
        {**{f"module._orig_mod.{key}": tensor for key, tensor in state.items()}, "args": argparse.Namespace(lr=1), "epoch": 2},
        tmp_path / "last.pth.tar",
    )
    assert same(open_model(ModelRequest(f"{net}:build", str(tmp_path / "last.pth.tar"), input_shape=(3, 16, 16))), state)


@pytest.mark.parametrize("with_heads", [False, True])
def test_auxiliary_heads_are_not_needed(tmp_path, caplog, with_heads):
    """Of a file without them, and of a model that was built without them."""
    caplog.set_level(logging.INFO)
    state = torchvision.models.googlenet(weights=None, init_weights=False, num_classes=3, aux_logits=with_heads).state_dict()
    torch.save(state, tmp_path / "w.pth")
    arguments = ("aux_logits=false",) if with_heads else ()
    loaded = open_model(ModelRequest("torchvision:googlenet", str(tmp_path / "w.pth"), num_classes=3, model_args=arguments))
    assert same(loaded, {key: tensor for key, tensor in state.items() if not key.startswith("aux")})
    assert ("left out, inference does not run them" if with_heads else "the file has no aux1 and aux2") in caplog.text
    assert "does not say what input it was trained on" in caplog.text
    assert loaded.fastcnn_info.preprocessing is None


def test_a_head_that_is_used_is_missed(tmp_path, net):
    net.write_text(NET.replace("self.fc(", "self.aux(").replace("self.fc =", "self.aux ="))
    state = open_model(ModelRequest(f"{net}:build", input_shape=(3, 16, 16))).state_dict()
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("aux")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="2 keys missing"):
        open_model(ModelRequest(f"{net}:build", str(tmp_path / "w.pth"), input_shape=(3, 16, 16)))


def test_names_of_weights(monkeypatch):
    entry = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    state = trained(torchvision.models.mobilenet_v3_small()).state_dict()
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, **options: state)
    loaded = open_model(ModelRequest("torchvision:mobilenet_v3_small", "DEFAULT"))
    assert same(loaded, state)
    assert len(loaded.fastcnn_info.categories) == 1000
    assert loaded.fastcnn_info.weights == "torchvision: IMAGENET1K_V1"
    with pytest.raises(UnknownNameError, match="IMAGENET1K_V1"):
        open_model(ModelRequest("torchvision:mobilenet_v3_small", "IMAGENET1K_V3"))
    with pytest.raises(UnknownNameError, match="are called pretrained"):
        open_model(ModelRequest("timm:test_resnet", "imagenet"))
