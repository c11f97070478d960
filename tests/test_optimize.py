"""`fastcnn.optimize`: the choice of a backend, what it refuses, and what it leaves alone."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net
from support import CPU_BACKENDS
from torch import nn

import fastcnn
from fastcnn import engines, optimization
from fastcnn.engines import BACKENDS, available_backends
from fastcnn.engines.openvino_engine import OpenVinoEngine
from fastcnn.engines.torch_engine import TorchEngine
from fastcnn.errors import BackendError, CaptureError, InputError, ParityError, RequestError, UnknownNameError
from fastcnn.optimized_module import _is_ordinary_array
from fastcnn.target import Target

IMAGE = images(2, 3, 8, 8)
AVAILABLE = tuple(name for name in (*CPU_BACKENDS, "ncnn") if available_backends()[name] is None)


def _model() -> nn.Module:
    return net(lambda s, x: F.relu(s.bn(s.conv(x))).mean((2, 3)), conv=nn.Conv2d(3, 4, 3, bias=False), bn=nn.BatchNorm2d(4))


def _times(monkeypatch, **milliseconds):
    """Replaces the measurement; backends that are not named take a second."""
    monkeypatch.setattr(optimization, "time_in_turns", lambda modules, _: {name: milliseconds.get(name, 1000) / 1e3 for name in modules})


# -- auto --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", AVAILABLE)
def test_auto_keeps_the_fastest_and_says_so(fastest, monkeypatch, caplog):
    _times(monkeypatch, **dict.fromkeys(AVAILABLE, 2.0) | {fastest: 1.0})
    with caplog.at_level("INFO", logger="fastcnn"):
        module = fastcnn.optimize(_model(), IMAGE)

    assert module.backend == module.plan.backend == fastest
    best, *others = module.plan.choice
    assert (best.backend, best.milliseconds, best.why) == (fastest, 1.0, "the fastest")
    assert {candidate.backend for candidate in others} == set(BACKENDS) - {fastest}
    assert {candidate.why for candidate in others if candidate.milliseconds} == {f"2.00× the time of {fastest}"}
    messages = [record.getMessage() for record in caplog.records if record.name == "fastcnn.optimization"]
    assert f"auto: {fastest}: 1.00 ms (the fastest)" in messages
    assert len(messages) == len(BACKENDS)
    torch.testing.assert_close(module(IMAGE), _model()(IMAGE))


def test_auto_leaves_out_a_backend_that_fails_parity(monkeypatch):
    lower = TorchEngine.lower

    def wrong(self, captured, target, artifact=None):
        lowered = lower(self, captured, target, artifact)
        run = lowered.run
        lowered.run = lambda x: [output * 1.001 for output in run(x)]
        return lowered

    monkeypatch.setattr(TorchEngine, "lower", wrong)
    _times(monkeypatch, torch=0.001)
    if len(AVAILABLE) == 1:
        pytest.skip("only the torch backend is installed")
    module = fastcnn.optimize(_model(), IMAGE)

    assert module.backend != "torch"
    (candidate,) = [candidate for candidate in module.plan.choice if candidate.backend == "torch"]
    assert candidate.milliseconds is None
    assert "relative error" in candidate.why
    with pytest.raises(ParityError, match="relative error") as caught:
        fastcnn.optimize(_model(), IMAGE, backend="torch")
    assert not caught.value.report.passed
    assert fastcnn.optimize(_model(), IMAGE, backend="torch", check=False).backend == "torch"


def test_parity_is_checked_at_batch_one_too():
    """A model that treats a single picture apart: torch.export takes the branch of larger batches."""
    model = net(lambda s, x: s.conv(x) if x.shape[0] > 1 else 2 * s.conv(x), conv=nn.Conv2d(3, 4, 3))
    with pytest.raises(ParityError, match="batch 1"):
        fastcnn.optimize(model, IMAGE, backend="torch")


def test_auto_with_one_backend_unavailable(monkeypatch):
    monkeypatch.setattr(OpenVinoEngine, "unavailable", lambda self: "openvino is not installed")
    _times(monkeypatch, torch=1.0)
    module = fastcnn.optimize(_model(), IMAGE)

    assert [(candidate.milliseconds, candidate.why) for candidate in module.plan.choice if candidate.backend == "openvino"] == [
        (None, "openvino is not installed")
    ]


def test_auto_with_a_runtime_that_breaks(monkeypatch):
    def broken(self, captured, target, artifact=None):
        raise BackendError("OpenVINO cannot compile the model: no such layer")

    monkeypatch.setattr(OpenVinoEngine, "unavailable", lambda self: None)
    monkeypatch.setattr(OpenVinoEngine, "lower", broken)
    _times(monkeypatch, torch=1.0)

    why = {candidate.backend: candidate.why for candidate in fastcnn.optimize(_model(), IMAGE).plan.choice}
    assert why["openvino"] == "OpenVINO cannot compile the model: no such layer"


@pytest.mark.parametrize("when", ["lowered", "called"])
def test_auto_leaves_out_a_backend_that_raises_what_we_do_not_know(when, monkeypatch):
    lower = TorchEngine.lower

    def broken(*_):
        raise RuntimeError("CUDA driver error:\n  device lost")

    def late(self, captured, target, artifact=None):
        return replace(lower(self, captured, target, artifact), run=broken)

    monkeypatch.setattr(OpenVinoEngine, "unavailable", lambda self: None)
    monkeypatch.setattr(OpenVinoEngine, "lower", broken if when == "lowered" else late)
    _times(monkeypatch, torch=1.0)
    module = fastcnn.optimize(_model(), IMAGE, check=False)

    assert module.backend == "torch"
    assert {timing.backend: timing.why for timing in module.plan.choice}["openvino"] == "RuntimeError: CUDA driver error: device lost"
    with pytest.raises(RuntimeError, match="device lost"):
        fastcnn.optimize(_model(), IMAGE, backend="openvino")


def test_an_interrupt_ends_auto(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchEngine, "lower", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastcnn.optimize(_model(), IMAGE)


def test_auto_with_no_backend_left(monkeypatch):
    for name in BACKENDS:
        monkeypatch.setattr(type(engines._load(name)), "unsupported", lambda self, target: "not today")

    with pytest.raises(BackendError, match=r"no backend can run this model: torch: not today; triton: .*; onnxruntime: not today"):
        fastcnn.optimize(_model(), IMAGE)


def test_what_auto_measured_stays_with_the_module_that_it_returned(monkeypatch):
    """Backends with the same passes are made from one graph."""
    built = []
    build = optimization.Builder.build
    monkeypatch.setattr(optimization.Builder, "build", lambda self, engine, **how: built.append(build(self, engine, **how)) or built[-1])
    _times(monkeypatch, torch=1.0)
    module = fastcnn.optimize(_model(), IMAGE)

    assert len(module.plan.choice) == len(BACKENDS)
    assert [other.plan.choice for other in built] == [()] * len(built)


def test_timing_in_turns_calls_every_module():
    calls = []
    modules = {name: lambda x, name=name: calls.append(name) for name in ("a", "b")}
    times = optimization.time_in_turns(modules, (IMAGE,))

    assert set(times) == {"a", "b"}
    assert all(seconds >= 0 for seconds in times.values())
    assert calls.count("a") == calls.count("b") > 0


# -- explicit backends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_explicit_backend_never_falls_back(backend, monkeypatch):
    monkeypatch.setattr(type(engines._load(backend)), "unavailable", lambda self: "it is gone")

    with pytest.raises(BackendError, match=f"backend '{backend}' cannot run here: it is gone"):
        fastcnn.optimize(_model(), IMAGE, backend=backend)


def test_unknown_backend_suggests_names_before_anything_is_captured():
    model = _model().train()  # would be refused by capture

    with pytest.raises(UnknownNameError, match="unknown backend 'onnx': did you mean onnxruntime"):
        fastcnn.optimize(model, IMAGE, backend="onnx")
    with pytest.raises(UnknownNameError, match="'tensorrt'"):
        fastcnn.optimize(model, IMAGE, backend="tensorrt")


def test_operation_without_onnx_operators():
    model = net(lambda s, x: torch.special.bessel_j0(s.conv(x)), conv=nn.Conv2d(3, 4, 3))

    assert fastcnn.optimize(model, IMAGE, backend="torch").backend == "torch"
    with pytest.raises(RequestError, match=r"no standard operators for .*bessel_j0"):
        fastcnn.optimize(model, IMAGE, backend="onnxruntime")


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(backend, dtype):
    model = fastcnn.create_model("residual_mnist")
    x = images(2, 1, 28, 28)
    reason = engines.get_engine(backend).unsupported(Target(x.device, dtype))
    if reason:
        with pytest.raises(BackendError, match=f"backend '{backend}': "):
            fastcnn.optimize(model, x, dtype=dtype, backend=backend)
        return
    try:
        module = fastcnn.optimize(model, x, dtype=dtype, backend=backend)
    except BackendError as error:
        pytest.skip(str(error))

    assert module.dtype == dtype
    assert {tensor.dtype for tensor in module.source.graph.constants().values()} == {dtype}
    output = module(x)
    assert output.dtype == torch.float32
    report = fastcnn.verify(module, model, x.to(torch.promote_types(x.dtype, dtype)), dtype=dtype)
    assert report.passed, report.summary()


def test_dtype_of_the_example_is_the_default():
    assert fastcnn.optimize(_model().double(), IMAGE.double(), backend="torch").dtype == torch.float64
    assert fastcnn.optimize(_model(), IMAGE, backend="torch").dtype == torch.float32


def test_unknown_dtype():
    with pytest.raises(RequestError, match=r"dtype torch\.int16 is not one of torch\.float32, torch\.float16"):
        fastcnn.optimize(_model(), IMAGE, dtype=torch.int16)


# -- the original and the module ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", AVAILABLE)
def test_original_and_module_are_independent(backend):
    model = _model()
    before = copy.deepcopy(model.state_dict())
    module = fastcnn.optimize(model, IMAGE, backend=backend)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    want, plain = module(IMAGE).clone(), module._run_plainly(IMAGE)[0].clone()

    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    model.train()(IMAGE).sum().backward()

    torch.testing.assert_close(module(IMAGE), want, rtol=0, atol=0)
    torch.testing.assert_close(module._run_plainly(IMAGE)[0], plain, rtol=0, atol=0)
    torch.testing.assert_close(module.state_dict(), dict(before), rtol=0, atol=0)


def test_state_dict_loads_into_the_reference():
    model, other = _model(), _model()
    module = fastcnn.optimize(model, IMAGE, backend="torch")
    with torch.no_grad():
        other.conv.weight.zero_()
    other.load_state_dict(module.state_dict(), strict=True)

    assert list(module.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(other(IMAGE), model(IMAGE), rtol=0, atol=0)


def test_state_dict_inside_a_larger_module():
    wrapped = nn.Sequential(fastcnn.optimize(_model(), IMAGE, backend="torch"), nn.Softmax(1)).eval()

    assert set(wrapped.state_dict()) == {f"0.{name}" for name in _model().state_dict()}
    torch.testing.assert_close(wrapped(IMAGE).sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("act", "text"),
    [
        pytest.param(lambda module: module.load_state_dict(module.state_dict()), "load them into the reference", id="load_state_dict"),
        pytest.param(lambda module: module.train(), "inference only", id="train"),
        pytest.param(lambda module: module.to("cpu"), "device and dtype are fixed", id="to"),
        pytest.param(lambda module: module.half(), "device and dtype are fixed", id="half"),
        pytest.param(lambda module: module.cuda(), "device and dtype are fixed", id="cuda"),
        pytest.param(pickle.dumps, "use fastcnn.save", id="pickle"),
        pytest.param(copy.deepcopy, "use fastcnn.save", id="deepcopy"),
    ],
)
def test_what_an_optimized_module_refuses(act, text):
    module = fastcnn.optimize(_model(), IMAGE, backend="torch", check=False)
    with pytest.raises(RequestError, match=text) as caught:
        act(module)
    assert "\n" not in str(caught.value)


def test_module_describes_itself():
    module = fastcnn.optimize(fastcnn.create_model("simple_cnn"), images(1, 1, 28, 28), backend="torch")

    assert module.info["name"] == "simple_cnn"
    assert "simple_cnn, backend=torch, dtype=torch.float32, input=(None, 1, 28, 28)" in repr(module)
    assert module.eval() is module
    assert not list(module.parameters())
    assert not module.training


@pytest.mark.parametrize("backend", [name for name in AVAILABLE if name != "ncnn"])  # it has no argmax
def test_outputs_keep_their_structure(backend):
    model = net(lambda s, x: {"logits": s.conv(x).mean((2, 3)), "index": s.conv(x).mean((2, 3)).argmax(1)}, conv=nn.Conv2d(3, 4, 3))
    outputs = fastcnn.optimize(model, IMAGE, backend=backend)(IMAGE)

    torch.testing.assert_close(outputs, model(IMAGE))
    assert outputs["index"].dtype == torch.int64


# -- errors of capture come through ------------------------------------------------------------------------------------


def test_errors_of_capture():
    with pytest.raises(CaptureError, match="training mode"):
        fastcnn.optimize(_model().train(), IMAGE)
    with pytest.raises(InputError, match="empty batch"):
        fastcnn.optimize(_model(), IMAGE[:0])
    with pytest.raises(InputError, match="is on meta, the example input on cpu"):
        fastcnn.optimize(_model().to("meta"), IMAGE)
    with pytest.raises(InputError, match="meta tensor"):
        fastcnn.optimize(_model().to("meta"), IMAGE.to("meta"))


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", AVAILABLE)
def test_hooks_run_and_keyword_calls_work(backend):
    module = fastcnn.optimize(_model(), IMAGE, backend=backend, check=False)
    want = module(IMAGE)
    torch.testing.assert_close(module(x=IMAGE), want, rtol=0, atol=0)
    seen = []
    with module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape)):
        torch.testing.assert_close(nn.Sequential(module)(IMAGE), want, rtol=0, atol=0)
    module(IMAGE)

    assert seen == [want.shape]


@pytest.mark.parametrize("backend", [name for name in AVAILABLE if name != "torch"])
def test_the_usual_call_reaches_the_runtime_as_an_array(backend, monkeypatch):
    """A small network is called more often than a second's worth of checks allows."""
    module = fastcnn.optimize(_model(), IMAGE, backend=backend, check=False)
    want = module(IMAGE)
    monkeypatch.setattr(module, "_check", lambda x: pytest.fail("the long way"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(IMAGE), want, rtol=0, atol=0)
    torch.testing.assert_close(module(IMAGE[:1]), want[:1])
    monkeypatch.undo()

    other_ways = {"gradient": IMAGE.clone().requires_grad_(), "parameter": nn.Parameter(IMAGE), "double": IMAGE.double()}
    for x in other_ways.values():
        assert not module(x).requires_grad
        torch.testing.assert_close(module(x).to(want.dtype), want)


@pytest.mark.parametrize("size", [5, 8192, 8193, 30_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_ordinary_values(size, dtype):
    values = np.full(size, 3.0, dtype)
    assert _is_ordinary_array(values.reshape(1, -1))
    for place in (0, size // 2, size - 1):
        for bad in (np.nan, np.inf, -np.inf, *(() if dtype == np.float16 else (1.1e10, -1.1e10, 1e30))):
            changed = values.copy()
            changed[place] = bad
            assert not _is_ordinary_array(changed)
    if dtype != np.float16:  # the sum of squares alone would refuse them
        assert _is_ordinary_array(np.full(size, 9e9, dtype))


def test_bfloat16_answers_with_logits_that_are_not_rounded_to_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 50)).eval()
    x = images(16, 3, 8, 8)
    output = fastcnn.optimize(model, x, dtype=torch.bfloat16, backend="torch", check=False)(x)  # random logits lie near each other
    assert output.dtype == torch.float32
    assert not torch.equal(output, output.bfloat16().float())
    with torch.no_grad():
        truth, eager = model(x), copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert float((output - truth).norm()) < float((eager.float() - truth).norm())
