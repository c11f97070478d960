"""A saved module comes back bit by bit, in a process that knows nothing of the model, or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from graph_support import images, net
from safetensors import safe_open
from support import CPU_BACKENDS, randomize_weights
from torch import nn

import fastcnn
from fastcnn.engines import available_backends
from fastcnn.engines.openvino_engine import OpenVinoEngine
from fastcnn.errors import BackendError, FileFormatError, RequestError, UnknownNameError

AVAILABLE = tuple(name for name in CPU_BACKENDS if available_backends()[name] is None)
IMAGE = images(3, 1, 28, 28)


@functools.cache
def _optimize(backend="torch", **options):
    """One module for all tests: none of them changes it."""
    return fastcnn.optimize(randomize_weights(fastcnn.create_model("residual_mnist")), IMAGE, backend=backend, check=False, **options)


@pytest.fixture
def saved(tmp_path):
    return fastcnn.save(_optimize(), tmp_path / "model.fastcnn")


def _header(path):
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def _rewrite(path, change):
    """Changes the description inside a file, and its digest with it, as someone with bad intent would."""
    metadata, tensors = _header(path)
    description = json.loads(metadata["fastcnn"].partition(" ")[2])
    change(description)
    text = json.dumps(description)
    safetensors.torch.save_file(tensors, path, {"fastcnn": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"})


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_bit_equal(backend, dtype, tmp_path):
    try:
        module = _optimize(backend, dtype=dtype)
    except BackendError as error:
        pytest.skip(str(error))
    path = fastcnn.save(module, tmp_path / "model.fastcnn")
    loaded = fastcnn.load(path)

    assert (loaded.backend, loaded.dtype, loaded.info) == (module.backend, module.dtype, module.info)
    for batch in (1, 3):
        torch.testing.assert_close(loaded(IMAGE[:batch]), module(IMAGE[:batch]), rtol=0, atol=0)
    torch.testing.assert_close(loaded._run_plainly(IMAGE.to(dtype)), module._run_plainly(IMAGE.to(dtype)), rtol=0, atol=0)
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
    # OpenVINO numbers the reshapes that it inserts anew in each compilation.
    assert [replace(row, name="") for row in loaded.plan.rows] == [replace(row, name="") for row in module.plan.rows]
    assert loaded.plan.passes == module.plan.passes


@pytest.mark.parametrize("backend", AVAILABLE)
def test_with_folded_weights_and_several_outputs(backend, tmp_path):
    def forward(s, x):
        y = F.relu(s.bn(s.conv((x - 0.5) / 0.25)))
        return {"logits": y.mean((2, 3)), "parts": (y, x.mean())}

    model = net(forward, conv=nn.Conv2d(3, 4, 3, bias=False), bn=nn.BatchNorm2d(4))
    module = fastcnn.optimize(model, images(2, 3, 8, 8), backend=backend)
    loaded = fastcnn.load(fastcnn.save(module, tmp_path / "model.fastcnn"))
    x = images(2, 3, 8, 8)

    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    model.load_state_dict(loaded.state_dict(), strict=True)


def test_view_and_names_that_are_no_identifiers(tmp_path):
    """`view` of what the torch engine keeps in channels_last, and weights called as nothing in a graph module may be."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph = nn.Conv2d(3, 4, 3)
            self.add_module('a"b', nn.Linear(144, 5))

        def forward(self, x):
            return self.get_submodule('a"b')(torch.relu(self.graph(x)).view(-1, 144))

    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    fast = fastcnn.optimize(model, x, backend="torch")
    fastcnn.save(fast, tmp_path / "m.fast")
    again = fastcnn.load(tmp_path / "m.fast")

    assert set(again.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(fast(x), model(x).detach())
    torch.testing.assert_close(again(x), fast(x), rtol=0, atol=0)


def test_saving_what_was_loaded_gives_the_same_bytes(saved, tmp_path):
    again = fastcnn.save(fastcnn.load(saved), tmp_path / "again.fastcnn")

    assert again.read_bytes() == saved.read_bytes()
    assert fastcnn.save(_optimize.__wrapped__(), tmp_path / "anew.fastcnn").read_bytes() == saved.read_bytes()


def test_state_dict_shares_nothing_with_the_running_module(saved):
    """Equal tensors are stored once; each name has its own copy in memory."""
    loaded = fastcnn.load(saved)
    want = loaded(IMAGE).clone()
    for tensor in loaded.state_dict().values():
        tensor.zero_()

    torch.testing.assert_close(loaded(IMAGE), want, rtol=0, atol=0)
    pointers = [tensor.data_ptr() for tensor in loaded.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("first", AVAILABLE)
@pytest.mark.parametrize("second", AVAILABLE)
def test_backend_can_be_switched_at_load(first, second, tmp_path):
    module = _optimize(first)
    loaded = fastcnn.load(fastcnn.save(module, tmp_path / "model.fastcnn"), backend=second)

    assert loaded.backend == loaded.plan.backend == second
    torch.testing.assert_close(loaded(IMAGE), module(IMAGE), rtol=1e-4, atol=1e-5)


def test_choice_of_auto_is_kept(tmp_path):
    module = fastcnn.optimize(fastcnn.create_model("simple_cnn"), IMAGE)

    assert fastcnn.load(fastcnn.save(module, tmp_path / "model.fastcnn")).plan.choice == module.plan.choice


def test_the_target_is_kept_and_files_of_the_first_release_load(saved, tmp_path):
    module = _optimize(allow_tf32=True)
    assert fastcnn.load(fastcnn.save(module, tmp_path / "tf32.fastcnn")).source.target == module.source.target

    _rewrite(saved, lambda description: description["graph"].pop("allow_tf32"))
    target = fastcnn.load(saved).source.target
    assert (target.usual_batch, target.allow_tf32, target.dtype) == (len(IMAGE), False, torch.float32)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_slim_file_leaves_out_the_weights_of_the_reference(backend, tmp_path):
    model = net(lambda s, x: F.relu(s.bn(s.conv(x))).mean((2, 3)), conv=nn.Conv2d(3, 256, 5, bias=False), bn=nn.BatchNorm2d(256))
    x = images(2, 3, 8, 8)
    module = fastcnn.optimize(model, x, backend=backend)
    whole, slim = fastcnn.save(module, tmp_path / "whole.fast"), fastcnn.save(module, tmp_path / "slim.fast", slim=True)
    loaded = fastcnn.load(slim)

    # One set of weights less.
    assert whole.stat().st_size - slim.stat().st_size > model.conv.weight.nbytes
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    torch.testing.assert_close(fastcnn.load(whole).state_dict(), module.state_dict(), rtol=0, atol=0)
    with pytest.raises(RequestError, match="saved with slim=True, without the weights of its reference"):
        loaded.state_dict()
    assert fastcnn.save(loaded, tmp_path / "again.fast").read_bytes() == slim.read_bytes()


def test_fresh_process_needs_no_model_code(saved, tmp_path):
    inputs, outputs = tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors"
    safetensors.torch.save_file({"x": IMAGE}, inputs)
    code = f"""
import sys, fastcnn, safetensors.torch
module = fastcnn.load({str(saved)!r})
x = safetensors.torch.load_file({str(inputs)!r})["x"]
safetensors.torch.save_file({{"y": module(x)}}, {str(outputs)!r})
print(sorted(name for name in sys.modules if name.startswith(("fastcnn.models", "torchvision", "fastcnn.graph.capture"))))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[]"
    torch.testing.assert_close(safetensors.torch.load_file(outputs)["y"], fastcnn.load(saved)(IMAGE), rtol=0, atol=0)


# -- files that are not what they seem ---------------------------------------------------------------------------------


def test_flipped_byte_in_the_tensors(saved):
    data = bytearray(saved.read_bytes())
    data[-100] ^= 1
    saved.write_bytes(data)

    with pytest.raises(FileFormatError, match="the file is damaged"):
        fastcnn.load(saved)


def test_flipped_byte_in_the_description(saved):
    data = saved.read_bytes()
    assert data.count(b"residual1.conv1") > 0
    saved.write_bytes(data.replace(b"residual1.conv1", b"residual1.conv2", 1))

    with pytest.raises(FileFormatError, match="the file is damaged"):
        fastcnn.load(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_file(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])

    with pytest.raises(FileFormatError, match="not a whole safetensors file") as caught:
        fastcnn.load(saved)
    assert "\n" not in str(caught.value)


def test_foreign_safetensors_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"conv.weight": torch.zeros(3)}, path)

    with pytest.raises(FileFormatError, match=r"it holds weights only; name the model that they belong to, .* or create_model"):
        fastcnn.load(path)


def test_another_kind_of_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no such thing" * 100)

    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        fastcnn.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(RequestError, match="no file"):
        fastcnn.load(tmp_path / "nothing.fastcnn")
    with pytest.raises(RequestError, match="no file"):
        fastcnn.load(tmp_path)


def _foreign_operation(description):
    next(node for node in description["graph"]["nodes"] if node["op"] == "call_function")["target"] = "os.system"


def _constant_of_another_name(description):
    description["constants"] = {f"x{name}": key for name, key in description["constants"].items()}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param(_foreign_operation, "calls 'os.system'", id="operation"),
        pytest.param(lambda d: d.update(format=99), "has format 99, this fastcnn .* reads format 1", id="format"),
        pytest.param(_constant_of_another_name, "lacks the constant", id="constant"),
        pytest.param(lambda d: d["constants"].update({"conv1.bias": "0" * 64}), "lacks the tensor 000000000000", id="tensor"),
        pytest.param(lambda d: d.pop("graph"), "does not hold what fastcnn.save writes", id="no graph"),
        pytest.param(
            lambda d: d["graph"]["nodes"][-1]["args"].append({"evil": 1, "two": 2}), "does not hold what fastcnn.save writes", id="argument"
        ),
        pytest.param(lambda d: d.update(state_dict=[1]), "does not hold what fastcnn.save writes", id="state dict"),
    ],
)
def test_description_that_was_tampered_with(saved, change, text):
    _rewrite(saved, change)

    with pytest.raises(FileFormatError, match=text) as caught:
        fastcnn.load(saved)
    assert "\n" not in str(caught.value)


def test_backend_that_is_unknown_or_gone(saved, monkeypatch):
    with pytest.raises(UnknownNameError, match="did you mean torch"):
        fastcnn.load(saved, backend="troch")
    monkeypatch.setattr(OpenVinoEngine, "unavailable", lambda self: "openvino is not installed")
    with pytest.raises(BackendError, match="cannot run here: openvino is not installed"):
        fastcnn.load(saved, backend="openvino")


def test_backend_that_lacks_the_dtype(tmp_path):
    path = fastcnn.save(_optimize(dtype=torch.float64), tmp_path / "model.fastcnn")

    with pytest.raises(BackendError, match=r"backend 'onnxruntime': has no kernels for torch\.float64"):
        fastcnn.load(path, backend="onnxruntime")


# -- writing -----------------------------------------------------------------------------------------------------------


def test_existing_file_needs_force(saved):
    before = saved.read_bytes()
    with pytest.raises(RequestError, match=r"exists: --force \(force=True\) overwrites it"):
        fastcnn.save(_optimize(), saved)
    assert saved.read_bytes() == before
    saved.write_bytes(b"old")
    assert fastcnn.save(_optimize(), saved, force=True).read_bytes() == before


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="cannot be written: there is no folder"):
        fastcnn.save(_optimize(), tmp_path / "nowhere" / "model.fastcnn")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RequestError, match="cannot be written: there is no folder"):
        fastcnn.save(_optimize(), tmp_path / "file" / "model.fastcnn")


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    """Root may write anywhere, so the system's answer is made up."""
    module = _optimize()
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(RequestError, match=r"cannot be written: .*: Permission denied"):
        fastcnn.save(module, tmp_path / "model.fastcnn")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk full", "interrupted"])
def test_failure_in_the_middle_leaves_the_old_file_and_nothing_else(saved, monkeypatch, error):
    before = saved.read_bytes()

    def fail(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(RequestError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        fastcnn.save(_optimize(), saved, force=True)

    if isinstance(error, OSError):
        assert str(caught.value) == f"{saved} cannot be written: No space left on device"
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_target_is_a_folder(tmp_path):
    (tmp_path / "model.fastcnn").mkdir()
    with pytest.raises(RequestError, match="is a folder: give the name of a file"):
        fastcnn.save(_optimize(), tmp_path / "model.fastcnn", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.fastcnn"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
def test_file_has_the_mode_that_open_gives(saved, tmp_path):
    (tmp_path / "plain").write_bytes(b"")

    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_only_optimized_modules_can_be_saved(tmp_path):
    with pytest.raises(RequestError, match=r"takes what fastcnn\.optimize returned, not a Linear"):
        fastcnn.save(nn.Linear(2, 2), tmp_path / "model.fastcnn")


def test_graph_with_something_that_has_no_plain_form(tmp_path):
    module = _optimize.__wrapped__()
    next(module.source.graph.calls()).target = print

    with pytest.raises(RequestError, match=r"this residual_mnist cannot be saved: .* is no ATen operation"):
        fastcnn.save(module, tmp_path / "model.fastcnn")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("device", "message"), [("gpu", "there is no device 'gpu'"), ("cuda", "PyTorch finds no CUDA device here")])
def test_a_device_that_is_not_there(device, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = net(lambda s, x: s.a(x), a=nn.Conv2d(3, 4, 3))
    path = fastcnn.save(fastcnn.optimize(model, images(1, 3, 8, 8), backend="torch"), tmp_path / "net.fast")

    with pytest.raises(RequestError, match=message):
        fastcnn.load(path, device=device)
