"""Weights from files and from torchvision by name, and every way in which they can be wrong."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from support import randomize_weights
from torchvision.models._api import WeightsEnum

from fastcnn.errors import UnknownNameError, WeightsError
from fastcnn.models import create_model, load_weights, state_dict_sha256

TRUNK = "inception_v3_imagenet_trunk.safetensors"


@pytest.fixture(scope="module")
def state():
    """A state dict of resnet18_cifar10: convolutions, linear layer and BatchNorm."""
    return randomize_weights(create_model("resnet18_cifar10")).state_dict()


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def assert_same(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth", "w.pt"])
def test_files(tmp_path, state, file):
    path = save(state, tmp_path / file)
    model = create_model("resnet18_cifar10", path)
    assert not model.training
    assert_same(model, state)
    assert model.fastcnn_info.weights == f"file: {file}"
    assert_same(create_model("resnet18_cifar10", str(path)), state)
    assert_same(load_weights(create_model("resnet18_cifar10"), path), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
        lambda state: {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["state_dict", "model", "module.", "state_dict and module.", "no num_batches_tracked"],
)
def test_wrappings(tmp_path, state, wrap):
    model = create_model("resnet18_cifar10", save(wrap(dict(state)), tmp_path / "w.pth"))
    assert_same(model, state)


def test_any_module_will_do(tmp_path):
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    load_weights(target, save(source.state_dict(), tmp_path / "w.safetensors"))
    assert_same(target, source.state_dict())


def test_random_state_is_left_alone(tmp_path, state):
    path = save(state, tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    create_model("resnet18_cifar10", path)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_is_cast_to_the_models_dtype(tmp_path, state):
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    model = create_model("resnet18_cifar10", save(half, tmp_path / "w.safetensors"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(model, {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in half.items()})


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_heads_in_the_file_but_not_in_the_model(tmp_path, name):
    full = create_model(name, num_classes=3, seed=4)
    path = save(full.state_dict(), tmp_path / "w.safetensors")
    model = create_model(name, path, num_classes=3, aux_logits=False)
    expected = create_model(name, num_classes=3, aux_logits=False)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert_same(model, {key: full.state_dict()[key] for key in expected.state_dict()})


def test_old_densenet_spelling(tmp_path):
    twin = randomize_weights(torchvision.models.densenet121(num_classes=5))
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key): tensor for key, tensor in twin.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    model = create_model("densenet121", save(old, tmp_path / "w.pth"), num_classes=5)
    assert_same(model, twin.state_dict())


def test_transform_input_from_the_metadata_of_a_file(tmp_path):
    tensors = create_model("inception_v3", num_classes=3).state_dict()
    save_file(tensors, tmp_path / "says.safetensors", metadata={"transform_input": "true"})
    save_file(tensors, tmp_path / "silent.safetensors")

    def built(file: str, **options: bool) -> tuple[bool, bool]:
        model = create_model("inception_v3", tmp_path / file, num_classes=3, **options)
        return model.transform_input, model.fastcnn_info.options["transform_input"]

    assert built("says.safetensors") == (True, True)
    assert built("says.safetensors", transform_input=False) == (False, False)
    assert built("silent.safetensors") == (False, False)
    assert built("silent.safetensors", transform_input=True) == (True, True)


class TestTrunk:
    """The real ImageNet trunk of Inception-v3, without classifier and auxiliary head."""

    def test_what_it_lacks_is_named(self, shared_dir):
        """Not the auxiliary head: a model built for the file goes without."""
        with pytest.raises(WeightsError, match=r"does not fit inception_v3: 2 keys missing \(fc\.weight, fc\.bias\)"):
            create_model("inception_v3", shared_dir / "weights" / TRUNK)

    def test_it_loads_where_that_is_allowed(self, shared_dir):
        path = shared_dir / "weights" / TRUNK
        model = load_weights(create_model("inception_v3", seed=5), path, allow_missing=("fc.*", "AuxLogits.*"))
        expected = create_model("inception_v3", seed=5).state_dict()
        trunk = load_file(path)
        assert {tensor.dtype for tensor in trunk.values()} == {torch.float16, torch.float32}
        expected.update({key: tensor.float() for key, tensor in trunk.items()})
        assert_same(model, expected)
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        own = "random (seed 5), scaled so that no layer inflates its signal"
        assert model.fastcnn_info.weights == f"file: {TRUNK} (without fc.*, AuxLogits.*: {own})"


class TestTorchvisionNames:
    """torchvision's download is replaced by a state dict made here; its table of names is the real one."""

    @pytest.fixture
    def published(self, monkeypatch):
        twins = {}

        def get_state_dict(entry, *args, **kwargs):
            assert kwargs["check_hash"]
            name = type(entry).__name__.removesuffix("_Weights").lower()
            if name not in twins:
                options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
                twins[name] = randomize_weights(torchvision.models.get_model(name, weights=None, **options)).state_dict()
            return twins[name]

        monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
        return lambda name: twins[name]

    @pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT", "Inception_V3_Weights.IMAGENET1K_V1", "Inception_V3_Weights.DEFAULT"])
    def test_names(self, published, weights):
        model = create_model("inception_v3", weights)
        assert_same(model, published("inception_v3"))
        info = model.fastcnn_info
        assert info.weights == "torchvision: IMAGENET1K_V1"
        assert info.options["transform_input"] is model.transform_input is True
        assert len(info.categories) == 1000
        assert info.categories[0] == "tench"

    def test_the_caller_has_the_last_word_on_transform_input(self, published, caplog):
        model = create_model("inception_v3", "DEFAULT", transform_input=False)
        assert model.fastcnn_info.options["transform_input"] is model.transform_input is False
        # What they expect then reaches them through the recorded normalisation.
        assert model.fastcnn_info.mean == pytest.approx((0.5, 0.5, 0.5))
        assert model.fastcnn_info.std == pytest.approx((0.5, 0.5, 0.5))
        assert not caplog.records

    def test_googlenet(self, published):
        model = create_model("googlenet", "IMAGENET1K_V1", aux_logits=False)
        assert model.fastcnn_info.options["transform_input"] is model.transform_input is True
        assert model.aux1 is None

    def test_loading_them_into_a_model_that_was_built_otherwise_is_logged(self, published, caplog):
        model = load_weights(create_model("inception_v3"), "DEFAULT")
        assert "expects transform_input=True" in caplog.text
        assert model.fastcnn_info.mean == pytest.approx((0.5, 0.5, 0.5))

    def test_another_number_of_classes(self, published):
        with pytest.raises(WeightsError, match=r"fc\.weight \(1000, 512\), the model has \(10, 512\)"):
            create_model("resnet18", "DEFAULT", num_classes=10)

    def test_unknown_name(self):
        with pytest.raises(UnknownNameError, match=r"unknown weights of resnet50 'IMAGENET1K_V3': did you mean IMAGENET1K_V[12] or IMAGENET1K_V[12]"):
            create_model("resnet50", "IMAGENET1K_V3")
        with pytest.raises(UnknownNameError, match=r"'best': known: IMAGENET1K_V1, DEFAULT, and there is no such file"):
            create_model("resnet18", "best")

    def test_name_of_another_model(self):
        with pytest.raises(UnknownNameError, match=r"'ResNet50_Weights\.IMAGENET1K_V1': did you mean ResNet18_Weights\.IMAGENET1K_V1"):
            create_model("resnet18", "ResNet50_Weights.IMAGENET1K_V1")

    @pytest.mark.parametrize("name", ["simple_cnn", "inception_v4"])
    def test_model_without_published_weights(self, name):
        with pytest.raises(
            WeightsError, match=f"torchvision publishes no weights for {name}, so 'DEFAULT' means nothing here, and there is no such file"
        ):
            create_model(name, "DEFAULT")

    def test_failed_download(self, monkeypatch):
        def fail(*args, **kwargs):
            raise URLError("no network")

        monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
        with pytest.raises(WeightsError, match=r"could not get ResNet18_Weights\.IMAGENET1K_V1 from https://\S+: URLError: .*no network") as raised:
            create_model("resnet18", "DEFAULT")
        assert "\n" not in str(raised.value)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _overwrite(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html> this is not a weight file" * 10)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("damage", [_cut, _overwrite, _empty], ids=["cut", "overwritten", "empty"])
def test_damaged_file(tmp_path, file, damage):
    path = save(create_model("simple_cnn").state_dict(), tmp_path / file)
    damage(path)
    with pytest.raises(WeightsError, match=f"weight file {re.escape(str(path))} is truncated or damaged: .") as raised:
        create_model("simple_cnn", path)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_files_that_are_no_weights(tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(WeightsError) as raised:
            create_model("simple_cnn", path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert message(tmp_path / "absent.pth") == f"weight file {tmp_path / 'absent.pth'} does not exist"
    assert message(tmp_path) == f"weight file {tmp_path} is not a file"
    (tmp_path / "w.onnx").write_bytes(b"0")
    assert message(tmp_path / "w.onnx").endswith("damaged: it begins with b'0', as neither safetensors nor a PyTorch checkpoint does")
    torch.save(create_model("simple_cnn"), tmp_path / "whole.pth")
    assert "holds Python objects, not only tensors, and is not unpickled" in message(tmp_path / "whole.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in message(tmp_path / "list.pth")
    torch.save({"state_dict": {}}, tmp_path / "nothing.pth")
    assert "holds no state dict" in message(tmp_path / "nothing.pth")
    program = torch.jit.script(torch.nn.Linear(2, 2))
    program.save(tmp_path / "program.pt")
    assert "is a TorchScript program" in message(tmp_path / "program.pt")


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"w": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        create_model("simple_cnn", tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_foreign_file(tmp_path, state):
    path = save(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as raised:
        create_model("simple_cnn", path)
    text = str(raised.value)
    assert text.startswith(
        f"{path} does not fit simple_cnn: 6 keys missing (conv1.weight, conv1.bias, conv2.weight, conv2.bias, fc.weight, and 1 more), "
    )
    assert f"{len(state)} keys unexpected (" in text
    assert "\n" not in text


def test_wrong_shapes(tmp_path):
    path = save(create_model("simple_cnn", num_classes=7).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError) as raised:
        create_model("simple_cnn", path)
    assert str(raised.value) == (
        f"{path} does not fit simple_cnn: 2 keys of the wrong shape (fc.weight (7, 320), the model has (10, 320); fc.bias (7,), the model has (10,))"
        "; num_classes=7 (--num-classes 7) fits"
    )
    assert create_model("simple_cnn", path, num_classes=7).fastcnn_info.options == {"num_classes": 7}


def test_integer_weights_are_refused(tmp_path):
    tensors = {key: tensor.to(torch.int8) for key, tensor in create_model("simple_cnn").state_dict().items()}
    with pytest.raises(WeightsError, match=r"6 keys of the wrong kind of dtype \(conv1\.weight torch\.int8, conv1\.bias torch\.int8, "):
        create_model("simple_cnn", save(tensors, tmp_path / "w.safetensors"))


def test_a_model_is_untouched_by_weights_that_do_not_fit(tmp_path):
    model = create_model("simple_cnn")
    before, info = state_dict_sha256(model.state_dict()), model.fastcnn_info
    other = create_model("simple_cnn", seed=1).state_dict()
    del other["fc.bias"]
    with pytest.raises(WeightsError, match=r"1 key missing \(fc\.bias\); load_weights\(\.\.\., allow_missing=PATTERNS\) takes a part"):
        load_weights(model, save(other, tmp_path / "w.pth"))
    assert state_dict_sha256(model.state_dict()) == before
    assert model.fastcnn_info == info


class TestSha256:
    def test_independent_of_container_order_and_layout(self, tmp_path, state):
        digest = state_dict_sha256(state)
        assert re.fullmatch("[0-9a-f]{64}", digest)
        assert state_dict_sha256(dict(reversed(state.items()))) == digest
        permuted = {key: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for key, tensor in state.items()}
        assert state_dict_sha256(permuted) == digest
        for file in ("w.safetensors", "w.pth"):
            assert state_dict_sha256(create_model("resnet18_cifar10", save(state, tmp_path / file)).state_dict()) == digest

    def test_sees_every_change(self):
        weights = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
        changed = [
            {"a": torch.zeros(2, 3), "c": torch.zeros(())},
            {"a": torch.zeros(3, 2), "b": torch.zeros(())},
            {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.zeros(())},
            {"a": torch.zeros(2, 3), "b": -torch.zeros(())},
            {"a": torch.zeros(2, 3)},
        ]
        digests = [state_dict_sha256(state) for state in [weights, *changed]]
        assert len(set(digests)) == len(digests)

    def test_known_digest(self):
        """Files carry this digest: it may not change from one version to the next."""
        weights = {"w": torch.arange(4, dtype=torch.float32).reshape(2, 2), "h": torch.ones(1, dtype=torch.bfloat16)}
        assert state_dict_sha256(weights) == "3efc86cdfbb344f3253aa804cb90b5d6c9a29b31b2df6c15e8b4e4ecaa86d377"
