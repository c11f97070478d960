"""Checkpoints as training scripts leave them."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastcnn.errors import RequestError, WeightsError
from fastcnn.models import create_model, load_weights


@pytest.fixture(scope="module")
def state():
    return create_model("simple_cnn", seed=7).state_dict()


@pytest.fixture
def loads(tmp_path, state):
    """Whether a checkpoint, once written, gives `simple_cnn` the weights of `state`."""

    def check(content, file: str = "w.pth", **options) -> bool:
        torch.save(content, tmp_path / file)
        loaded = create_model("simple_cnn", tmp_path / file, **options).state_dict()
        return all(torch.equal(loaded[key], tensor) for key, tensor in state.items())

    return check


def prefixed(state, prefix):
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("file", ["model_best.pth.tar", "pytorch_model.bin", "epoch=3.ckpt", "W.PTH", "weights"])
def test_the_content_says_how_a_file_is_read(loads, state, file):
    assert loads({"state_dict": state}, file)


def test_safetensors_by_another_name_and_a_pickle_named_safetensors(tmp_path, state):
    save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "w.safetensors")
    for file in ("w.pth", "w.safetensors"):
        assert torch.equal(create_model("simple_cnn", tmp_path / file).fc.weight, state["fc.weight"])


def test_format_before_pytorch_1_6(tmp_path, state):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(create_model("simple_cnn", tmp_path / "old.pth").fc.weight, state["fc.weight"])


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "network", "model_state_dict", "ema", "state_dict_ema", "model_ema"])
def test_keys(loads, state, key):
    assert loads({key: state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}})
    assert loads({"model": {key: state}, "epoch": 3})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "_orig_mod.module.", "module._orig_mod.", "model._orig_mod."])
def test_prefixes_are_stripped_and_named(loads, state, prefix, caplog):
    caplog.set_level(logging.INFO)
    assert loads({"state_dict": prefixed(state, prefix)})
    assert f"every name began with {prefix!r}, which was stripped" in caplog.text


def test_what_stands_beside_the_weights(loads, state):
    assert loads({"state_dict": state, "args": argparse.Namespace(lr=0.1, data=argparse.Namespace(root="x")), "best": torch.tensor(0.9)})
    assert loads({"state_dict": state, "best": np.float64(0.9), "epoch": np.int64(3)})


def test_counters_of_other_tools(loads, state, caplog):
    caplog.set_level(logging.INFO)
    assert loads({"model_ema": {"n_averaged": torch.tensor(5), **prefixed(state, "module.")}})
    assert loads({**state, "total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)})
    assert "2 counters of other tools, such as total_ops, were left out" in caplog.text


def test_names_of_a_module_are_no_prefix(tmp_path):
    module = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"total_ops": torch.nn.Linear(2, 2)})})
    torch.save(prefixed(module.state_dict(), "module."), tmp_path / "w.pth")
    other = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"total_ops": torch.nn.Linear(2, 2)})})
    load_weights(other, tmp_path / "w.pth")
    torch.testing.assert_close(dict(other.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


def test_a_prefix_of_the_users_own_is_found_and_said(loads, state, caplog):
    caplog.set_level(logging.INFO)
    others = {"loss.weight": torch.ones(3), "metric.total": torch.zeros(())}
    assert loads({**prefixed(state, "student."), **others})
    assert "the model is what stands under 'student.'; 2 others, such as loss.weight, are left out" in caplog.text


def test_a_part_of_another_network_is_not_taken_for_the_model(tmp_path, state):
    torch.save({f"block.{key}": tensor for key, tensor in state.items() if not key.startswith("conv1")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"4 keys unexpected \(block\.\*\)"):
        create_model("simple_cnn", tmp_path / "w.pth")


class TestMovingAverage:
    """A file with two sets of weights."""

    @pytest.fixture(params=[("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "ema_state_dict")], ids="+".join)
    def path(self, request, tmp_path, state) -> Path:
        plain, ema = request.param
        torch.save({plain: create_model("simple_cnn", seed=8).state_dict(), ema: state}, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    def test_it_is_taken_and_said(self, path, state, caplog):
        assert torch.equal(create_model("simple_cnn", path).fc.weight, state["fc.weight"])
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "the moving average, is taken, as timm does; weights_set='plain' (--weights-set plain) takes '" in record.getMessage()

    def test_either_can_be_asked_for(self, path, state, caplog):
        plain = create_model("simple_cnn", path, weights_set="plain")
        assert torch.equal(plain.fc.weight, create_model("simple_cnn", seed=8).fc.weight)
        assert torch.equal(create_model("simple_cnn", path, weights_set="ema").fc.weight, state["fc.weight"])
        assert torch.equal(load_weights(create_model("simple_cnn"), path, weights_set="plain").fc.weight, plain.fc.weight)
        assert not caplog.records

    def test_one_that_is_not_there(self, tmp_path, state):
        torch.save({"model": state}, tmp_path / "plain.pth")
        torch.save({"ema": state}, tmp_path / "ema.pth")
        with pytest.raises(WeightsError, match=r"plain\.pth holds no moving average of the weights: leave weights_set \(--weights-set\) out"):
            create_model("simple_cnn", tmp_path / "plain.pth", weights_set="ema")
        with pytest.raises(WeightsError, match=r"ema\.pth holds no weights but their moving average"):
            create_model("simple_cnn", tmp_path / "ema.pth", weights_set="plain")

    @pytest.mark.parametrize(
        ("weights", "weights_set", "said"),
        [
            (None, "ema", "is for a file that holds two sets of weights: give the file"),
            ("DEFAULT", "ema", "DEFAULT names one set of weights"),
            ("w.pth", "best", "the set of weights is 'ema' or 'plain', not 'best'"),
        ],
    )
    def test_wrong_requests(self, weights, weights_set, said):
        with pytest.raises(RequestError, match=said):
            create_model("resnet18", weights, weights_set=weights_set)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "googlenet_cifar10"])
def test_auxiliary_heads_that_the_file_lacks(tmp_path, name, caplog):
    """Trained or saved without them: inference does not run them."""
    caplog.set_level(logging.INFO)
    state = create_model(name, num_classes=3, aux_logits=False).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = create_model(name, tmp_path / "w.pth", num_classes=3)
    assert model.fastcnn_info.options["aux_logits"] is False
    assert model.state_dict().keys() == state.keys()
    assert f"has no auxiliary heads, and {name} is built without them" in caplog.text
    with pytest.raises(WeightsError, match="missing"):
        create_model(name, tmp_path / "w.pth", num_classes=3, aux_logits=True)


def test_one_of_two_heads_is_a_fault(tmp_path):
    state = create_model("googlenet", num_classes=3).state_dict()
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("aux2.")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"missing \(aux2\.\*\)"):
        create_model("googlenet", tmp_path / "w.pth", num_classes=3)


def test_number_of_classes(tmp_path):
    torch.save(create_model("googlenet", num_classes=5).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"; num_classes=5 \(--num-classes 5\) fits$"):
        create_model("googlenet", tmp_path / "w.pth")
    assert create_model("googlenet", tmp_path / "w.pth", num_classes=5).fc.out_features == 5
