"""Every engine computes what the reference computes, with kernels of its own, and does not lose what eager PyTorch keeps."""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net, relative_error
from support import CPU_BACKENDS, randomize_weights
from torch import Tensor, nn

import fastcnn
from fastcnn.engines import available_backends, get_engine
from fastcnn.engines.torch_engine import _onednn_has
from fastcnn.errors import InputError
from fastcnn.optimization import Builder
from fastcnn.optimized_module import OptimizedModule

KERNELS = {"torch": "oneDNN convolution", "onnxruntime": "ONNX Runtime ", "openvino": "OpenVINO "}


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: __import__("timm").create_model(name, pretrained=False).eval()


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: __import__("torchvision").models.get_model(name, weights=None).eval()


@dataclass(frozen=True)
class Case:
    """A model and what its plan must show."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)
    # DenseNet and MobileNet-style models may keep a BatchNorm that follows no convolution.
    keeps_batch_norm: bool = False
    needs: str = "torchvision"


def _ours(name: str, **options: int) -> Callable[[], nn.Module]:
    return lambda: fastcnn.create_model(name, **options)


CASES = {
    "simple_cnn": Case(_ours("simple_cnn"), (1, 28, 28)),
    "inception_mnist": Case(_ours("inception_mnist"), (1, 28, 28)),
    "residual_mnist": Case(_ours("residual_mnist"), (1, 28, 28)),
    "resnet18": Case(_ours("resnet18", num_classes=10)),
    "googlenet": Case(_ours("googlenet", num_classes=10)),
    "squeezenet1_1": Case(_ours("squeezenet1_1", num_classes=10)),
    "densenet121": Case(_ours("densenet121", num_classes=10), keeps_batch_norm=True),
    "mobilenet_v3_small": Case(_torchvision("mobilenet_v3_small")),
    "shufflenet_v2_x0_5": Case(_torchvision("shufflenet_v2_x0_5")),
    "resnet18d": Case(_timm("resnet18d"), needs="timm"),
    "convnext_atto": Case(_timm("convnext_atto"), needs="timm"),
}
SMALL = ("simple_cnn", "inception_mnist", "residual_mnist")


def _cases(names: Iterable[str]) -> list[Any]:
    """Each model with each backend in a row, so that a test process captures a model once."""
    return [pytest.param(name, backend, marks=pytest.mark.slow if name == "densenet121" else ()) for name in names for backend in CPU_BACKENDS]


@functools.cache
def _builder(name: str) -> Builder:
    case = CASES[name]
    if importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    return Builder(randomize_weights(case.make()), images(2, *case.shape), check=False)


@functools.cache
def _optimized(name: str, backend: str) -> OptimizedModule:
    return _builder(name).build(get_engine(backend))


def _pair(name: str, backend: str) -> tuple[OptimizedModule, nn.Module]:
    return _optimized(name, backend), _builder(name).model


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = available_backends()[request.param]
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def plain_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that ran on PyTorch's plain operations instead of the engine."""
    runs: list[int] = []
    run = OptimizedModule._run_plainly

    def spy(self: OptimizedModule, value: Tensor) -> list[Tensor]:
        runs.append(len(value))
        return run(self, value)

    monkeypatch.setattr(OptimizedModule, "_run_plainly", spy)
    return runs


# -- the same answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), _cases(CASES), indirect=["backend"])
def test_parity_on_the_engines_own_kernels(name, backend, plain_runs):
    module, model = _pair(name, backend)
    report = fastcnn.verify(module, model, images(2, *CASES[name].shape), batch_sizes=(1, 2, 5))

    assert report.passed, report.summary()
    assert not plain_runs
    rows = module.plan.rows
    assert module.plan.backend == backend
    if backend != "torch":
        assert {row.kernel.startswith(KERNELS[backend]) for row in rows} == {True}
    elif _onednn_has(torch.device("cpu"), torch.float32):
        convolutions = [row.kernel for row in rows if "conv" in row.op]
        assert convolutions
        assert {kernel.startswith(KERNELS[backend]) for kernel in convolutions} == {True}
    assert not [row for row in rows if "batch" in row.op.lower()] or CASES[name].keeps_batch_norm


@pytest.mark.parametrize("name", ["simple_cnn", "residual_mnist", "googlenet"])
def test_empty_batch(name, backend):
    module, model = _pair(name, backend)
    x = torch.zeros(0, *CASES[name].shape)

    output = module(x)
    assert output.shape == model(x).shape
    assert output.dtype == x.dtype


@pytest.mark.parametrize(("name", "backend"), _cases([*SMALL, "resnet18", "googlenet", "mobilenet_v3_small"]), indirect=["backend"])
def test_error_is_not_above_eager_pytorch_by_more_than_half(name, backend):
    """Folding in float64 and casting once adds no error of its own.

    Kernels sum in different orders: eager PyTorch's channels_last kernels, which the engines' are like, err up to twice as much as its contiguous
    ones. The bound is 1.5 times the larger of the two, and two units in the last place for what a runtime approximates (hard-swish, average pools).
    """
    module, model = _pair(name, backend)
    x = images(16, *CASES[name].shape, seed=3)
    reference = copy.deepcopy(model).double()(x.double())
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    eager = max(relative_error(model(x), reference), relative_error(channels_last(x.contiguous(memory_format=torch.channels_last)), reference))

    assert relative_error(module(x), reference) <= 1.5 * eager + 2**-22


@pytest.mark.parametrize("name", [*SMALL, "resnet18", "googlenet", "mobilenet_v3_small"])
def test_passes_add_no_error(name):
    """The passed graph on the very kernels that the reference ran on."""
    module, model = _pair(name, "torch")
    x = images(16, *CASES[name].shape, seed=4)
    reference = copy.deepcopy(model).double()(x.double())

    passed = relative_error(module.source.graph.module(x)[0], reference)
    assert passed <= 1.5 * relative_error(model(x), reference)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e25, -1e25])
@pytest.mark.parametrize("name", [*SMALL, "convnext_atto"])
def test_nan_and_infinity_come_out_where_eager_pytorch_has_them(name, value, backend):
    module, model = _pair(name, backend)
    x = images(3, *CASES[name].shape)
    x[1, 0, 7, 9] = value
    output, eager = module(x), model(x)

    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        torch.testing.assert_close(kind(output), kind(eager))
    # The other pictures of the batch are as they were.
    torch.testing.assert_close(output[::2], eager[::2], rtol=1e-4, atol=1e-4)


def _ours_of(records: list[logging.LogRecord]) -> list[logging.LogRecord]:
    return [record for record in records if record.name.startswith("fastcnn")]


def test_values_beyond_the_ordinary_are_warned_of_once(backend, caplog, plain_runs):
    module = Builder(fastcnn.create_model("simple_cnn"), images(1, 1, 28, 28), check=False).build(get_engine(backend))
    x = torch.full((2, 1, 28, 28), float("nan"))
    with caplog.at_level("WARNING", logger="fastcnn"):
        module(images(2, 1, 28, 28))
        assert not _ours_of(caplog.records)
        module(x)
        module(x)

    assert [backend in record.getMessage() for record in _ours_of(caplog.records)] == [True]
    assert plain_runs == [2, 2]


# -- the same interface ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda x: x.contiguous(memory_format=torch.channels_last), id="channels_last"),
        pytest.param(lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), id="transposed"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 0], id="every other element"),
        pytest.param(lambda x: torch.cat([x, x])[: len(x)], id="slice of a larger batch"),
        pytest.param(lambda x: x.clone().requires_grad_(), id="requires grad"),
    ],
)
@pytest.mark.parametrize("name", ["residual_mnist", "resnet18"])
def test_memory_formats(name, arrange, backend):
    module, _ = _pair(name, backend)
    x = images(3, *CASES[name].shape)
    arranged = arrange(x)
    before = arranged.detach().clone()

    output = module(arranged)
    assert not output.requires_grad
    torch.testing.assert_close(output, module(x), rtol=0, atol=0)
    torch.testing.assert_close(arranged.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_input_of_another_dtype_is_cast_and_the_output_is_cast_back(dtype, backend):
    module, _ = _pair("residual_mnist", backend)
    x = images(2, 1, 28, 28).to(dtype)

    output = module(x)
    assert output.dtype == dtype
    torch.testing.assert_close(output, module(x.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_an_antialiased_resize_to_one_column(mode):
    """Which PyTorch computes wrongly where channels stand last."""
    model = net(lambda s, x: F.interpolate(s.conv(x), size=(8, 1), mode=mode, antialias=True), conv=nn.Conv2d(3, 4, 1))
    x = images(2, 3, 5, 7)
    with torch.no_grad():
        assert relative_error(fastcnn.optimize(model, x, backend="torch")(x), model(x)) < 1e-5


@pytest.mark.parametrize(
    ("x", "text"),
    [
        pytest.param(torch.zeros(1, 28, 28), "expected an input of N×1×28×28, got 1×28×28", id="no batch"),
        pytest.param(torch.zeros(1, 1, 1, 28, 28), "expected an input of N×1×28×28, got 1×1×1×28×28", id="rank"),
        pytest.param(torch.zeros(1, 3, 28, 28), "expected an input of N×1×28×28, got 1×3×28×28", id="channels"),
        pytest.param(torch.zeros(2, 1, 28, 29), "expected an input of N×1×28×28, got 2×1×28×29", id="size"),
        pytest.param(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "expected a floating-point tensor, got torch.uint8", id="integers"),
        pytest.param([[0.0]], "expected a floating-point tensor, got list", id="list"),
        pytest.param(torch.zeros(1, 1, 28, 28, device="meta"), "the module is on cpu, the input on meta", id="device"),
    ],
)
def test_wrong_inputs(x, text, backend):
    with pytest.raises(InputError) as caught:
        _optimized("simple_cnn", backend)(x)
    assert str(caught.value) == text


def test_second_call_gives_the_same_bits_and_leaves_the_first_result_alone(backend):
    module, _ = _pair("residual_mnist", backend)
    x, other = images(2, 1, 28, 28), images(2, 1, 28, 28, seed=1)
    first = module(x)
    kept = first.clone()
    module(other)

    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(module(x), kept, rtol=0, atol=0)
    first.zero_()
    torch.testing.assert_close(module(x), kept, rtol=0, atol=0)


def test_threads_that_call_at_once(backend):
    module = Builder(_builder("residual_mnist").model, images(2, 1, 28, 28), check=False).build(get_engine(backend))
    inputs = [images(1 + i % 3, 1, 28, 28, seed=i) for i in range(4)]
    wanted = [_optimized("residual_mnist", backend)(x) for x in inputs]
    results: list[list[Tensor]] = [[] for _ in inputs]
    start = threading.Barrier(len(inputs))

    def call(index: int) -> None:
        start.wait()
        results[index] = [module(inputs[index]) for _ in range(8)]

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outputs, want in zip(results, wanted, strict=True):
        assert len(outputs) == 8
        for output in outputs:
            torch.testing.assert_close(output, want)


def test_autocast_around_a_call_changes_nothing(backend):
    module, _ = _pair("residual_mnist", backend)
    x = images(2, 1, 28, 28)
    want = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(x)
    with torch.inference_mode():
        again = module(x)

    torch.testing.assert_close(output, want, rtol=0, atol=0)
    torch.testing.assert_close(again, want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "parts", "shape"),
    [
        pytest.param(lambda s, x: F.relu(s.bn(s.a(x))).mean(2), {"a": nn.Conv1d(4, 6, 3), "bn": nn.BatchNorm1d(6)}, (4, 16), id="conv1d"),
        pytest.param(
            lambda s, x: F.relu(s.bn(s.a(x))).mean((2, 3, 4)), {"a": nn.Conv3d(2, 6, 3), "bn": nn.BatchNorm3d(6)}, (2, 6, 7, 8), id="conv3d"
        ),
        pytest.param(lambda s, x: F.relu(s.bn(s.a(x))), {"a": nn.Linear(4, 6), "bn": nn.BatchNorm1d(6)}, (4,), id="linear"),
        pytest.param(lambda s, x: s.a(x).relu(), {"a": nn.ConvTranspose2d(3, 4, 3, stride=2)}, (3, 8, 8), id="transposed"),
        pytest.param(lambda s, x: F.relu(s.a(x) + x), {"a": nn.Conv2d(4, 4, 3, padding="same", groups=2)}, (4, 8, 8), id="grouped, padding by name"),
        pytest.param(lambda s, x: s.a(x), {"a": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")}, (4, 8, 8), id="reflected padding"),
        pytest.param(
            lambda s, x: {"logits": s.a(x).mean((2, 3)), "features": [s.a(x)]}, {"a": nn.Conv2d(4, 4, 3, dilation=2)}, (4, 8, 8), id="several outputs"
        ),
    ],
)
def test_other_layers(function, parts, shape, backend):
    model = net(function, **parts)
    module = fastcnn.optimize(model, images(2, *shape), backend=backend)

    for batch in (1, 5):
        x = images(batch, *shape, seed=batch)
        torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)


# -- what the plan shows -----------------------------------------------------------------------------------------------


def test_torch_fuses_residual_and_relu():
    if not _onednn_has(torch.device("cpu"), torch.float32):
        pytest.skip("PyTorch was built without oneDNN")
    plan = _optimized("resnet18", "torch").plan

    assert [row.kernel for row in plan.rows].count("oneDNN convolution + add + relu") == 8
    assert plan.count("relu") + plan.count("relu_") == 0
    assert [report.fired for report in plan.passes if report.name in ("fold_batch_norm", "fuse_convolution_epilogue")] == [20, 17]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_runtimes_tell_what_they_fused(name):
    reason = available_backends()[name]
    if reason:
        pytest.skip(reason)
    rows = _optimized("resnet18", name).plan.rows
    convolutions = [row for row in rows if "conv" in row.op.lower()]

    assert len(convolutions) == 20
    assert [row.folded[0] for row in convolutions] == ["batch_norm"] * 20
    assert convolutions[0].output_shape[1:] == (64, 32, 32)


def test_torch_relu_does_not_overwrite_what_a_view_still_reads():
    """`view` is made before the ReLU and read after it."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = torch.cat([s.conv(x), x], 1)
        view = y[:, :2]
        return F.relu(y)[:, :2] * 10 + view * 1

    model = net(forward, conv=nn.Conv2d(3, 4, 3, padding=1))
    module = fastcnn.optimize(model, images(2, 3, 8, 8), backend="torch", check=False)
    x = images(2, 3, 8, 8)

    torch.testing.assert_close(module(x), model(x))


def test_torch_relu_overwrites_a_value_of_its_own():
    model = net(lambda s, x: F.relu(F.avg_pool2d(s.conv(x), 2)), conv=nn.Conv2d(3, 4, 3))
    rows = fastcnn.optimize(model, images(2, 3, 8, 8), backend="torch").plan.rows

    assert rows[-1].kernel == "aten::relu_"
