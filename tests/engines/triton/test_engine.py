"""The whole engine in Triton's interpreter: networks of every kind of block, held against float64, and what the module
promises."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net
from narrowing import narrow
from support import randomize_weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastcnn
from fastcnn.engines.triton.engine import TritonEngine
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.errors import BackendError
from fastcnn.kernels import count_launches
from fastcnn.optimization import Builder
from fastcnn.optimized_module import OptimizedModule
from fastcnn.precision import round_to_tf32
from fastcnn.target import Target

NO_CACHE = TritonOptions(use_cache=False)


@pytest.fixture(autouse=True)
def one_multiprocessor(monkeypatch):
    """The predictions then prefer few large tiles, which the interpreter runs many times as fast."""
    for module in (
        "fastcnn.engines.triton.implementations.ours",
        "fastcnn.engines.triton.implementations.group",
        "fastcnn.kernels.convolution_problem",
    ):
        monkeypatch.setattr(f"{module}.device_limits", lambda device: (90, 1))


def build(model: nn.Module, x: Tensor, options: TritonOptions = NO_CACHE, **keywords: object) -> OptimizedModule:
    """Checked against the reference in float64 at the batch of `x` and at one picture."""
    return Builder(model, x, **keywords).build(TritonEngine(options))


def poison(module: OptimizedModule) -> None:
    """Fills the arena with NaN: what is read before it is written shows."""
    executor = module.lowered.run.__self__
    executor._memory.fill_(0xFF)


def small_dense(s, x: Tensor) -> Tensor:
    features = [F.max_pool2d(F.relu(s.stem(x)), 3, 2, 1)]
    for bn, conv in ((s.bn1, s.conv1), (s.bn2, s.conv2), (s.bn3, s.conv3)):
        features.append(conv(F.relu(bn(torch.cat(features, 1)))))
    y = F.avg_pool2d(s.transition(F.relu(s.bn4(torch.cat(features, 1)))), 2)
    return s.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def inception_block(s, x: Tensor, prefix: str) -> Tensor:
    one, five, three, pooled = (s.get_submodule(f"{prefix}_{branch}") for branch in ("one", "five", "three", "pool"))
    return torch.cat([one(x), five(x), three(x), pooled(F.avg_pool2d(x, 3, 1, 1))], 1)


def small_inception(s, x: Tensor) -> Tensor:
    """The blocks of inception_mnist, with a few channels."""
    x = inception_block(s, F.relu(F.max_pool2d(s.stem(x), 2)), "a")
    return s.fc(inception_block(s, F.relu(F.max_pool2d(s.between(x), 2)), "b").flatten(1))


def branches(prefix: str, channels: int) -> dict[str, nn.Module]:
    return {
        f"{prefix}_one": nn.Conv2d(channels, 2, 1),
        f"{prefix}_five": nn.Sequential(nn.Conv2d(channels, 2, 1), nn.Conv2d(2, 3, 5, padding=2)),
        f"{prefix}_three": nn.Sequential(nn.Conv2d(channels, 2, 1), nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)),
        f"{prefix}_pool": nn.Conv2d(channels, 3, 1),
    }


def make_small_inception() -> nn.Module:
    """For pictures of 1×14×14."""
    parts = {"stem": nn.Conv2d(1, 4, 3), "between": nn.Conv2d(11, 6, 3), "fc": nn.Linear(44, 5)}
    return net(small_inception, **parts, **branches("a", 4), **branches("b", 6))


def residual(s, x: Tensor) -> Tensor:
    y = F.relu(s.bn(s.stem(x)))
    z = F.relu(s.c2(F.relu(s.c1(y))) + y)
    z = F.relu(s.d2(F.relu(s.d1(z))) + s.shortcut(z))
    return s.fc(z.mean((2, 3)))


def odd_operations(s, x: Tensor) -> Tensor:
    """Grouped and dilated convolutions, activations that no pass knows, a flatten of more than one pixel."""
    y = F.silu(s.depthwise(F.relu6(s.stem(x))))
    y = y * torch.sigmoid(s.gate(F.adaptive_avg_pool2d(y, 1)))
    return s.fc(F.adaptive_avg_pool2d(s.dilated(y), 2).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "inception_mnist": (lambda: fastcnn.create_model("inception_mnist"), (1, 28, 28)),
    "residual_mnist": (lambda: fastcnn.create_model("residual_mnist"), (1, 28, 28)),
    "inception_v3, 1/16": (lambda: narrow(fastcnn.create_model("inception_v3", aux_logits=False), 16), (3, 79, 83)),
    "googlenet_cifar10, 1/8": (lambda: narrow(fastcnn.create_model("googlenet_cifar10", num_classes=1000), 8), (3, 32, 32)),
    "squeezenet1_1, 1/8": (lambda: narrow(fastcnn.create_model("squeezenet1_1", num_classes=1000), 8), (3, 47, 47)),
    "dense": (
        lambda: net(
            small_dense,
            stem=nn.Conv2d(3, 6, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(6),
            conv1=nn.Conv2d(6, 4, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(10),
            conv2=nn.Conv2d(10, 4, 3, padding=1, bias=False),
            bn3=nn.BatchNorm2d(14),
            conv3=nn.Conv2d(14, 4, 3, padding=1, bias=False),
            bn4=nn.BatchNorm2d(18),
            transition=nn.Conv2d(18, 9, 1),
            fc=nn.Linear(9, 5),
        ),
        (3, 13, 11),
    ),
    "residual": (
        lambda: net(
            residual,
            stem=nn.Conv2d(5, 8, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(8),
            c1=nn.Conv2d(8, 8, 3, padding=1),
            c2=nn.Conv2d(8, 8, 3, padding=1),
            d1=nn.Conv2d(8, 12, 3, stride=2, padding=1),
            d2=nn.Conv2d(12, 12, 3, padding=1),
            shortcut=nn.Conv2d(8, 12, 1, stride=2),
            fc=nn.Linear(12, 3),
        ),
        (5, 9, 7),
    ),
    "odd operations": (
        lambda: net(
            odd_operations,
            stem=nn.Conv2d(3, 8, 3, stride=2),
            depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
            gate=nn.Conv2d(8, 8, 1),
            dilated=nn.Conv2d(8, 6, 3, padding=2, dilation=2),
            fc=nn.Linear(24, 3),
        ),
        (3, 17, 15),
    ),
}
# Each picture costs the interpreter a second or two.
LARGE = ("inception_mnist", "residual_mnist", "inception_v3, 1/16", "googlenet_cifar10, 1/8", "squeezenet1_1, 1/8")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    """Built for one number of pictures, and called with another."""
    make, shape = NETWORKS[name]
    model = randomize_weights(make())
    built, called = (1, 2) if name in LARGE else (2, 3)
    fast = build(model, images(built, *shape))
    poison(fast)

    assert fast.backend == "triton"
    fastcnn.verify(fast, model, images(1, *shape, seed=1), batch_sizes=(called,)).require(name)
    kernels = [row.kernel for row in fast.plan.rows if row.op in ("conv2d", "fused_conv2d") and row.kernel != "aten::conv2d"]
    assert len(kernels) >= 3
    assert all(kernel.startswith("triton") for kernel in kernels)


@pytest.mark.parametrize(
    "options",
    [
        TritonOptions(use_cache=False, grouped="always"),
        TritonOptions(use_cache=False, implementations=("library",)),
        TritonOptions(use_cache=False, implementations=("library",), merge_siblings=False, move_pools=False),
        TritonOptions(use_cache=False, concat_in_place=False),
        TritonOptions(use_cache=False, concat_in_place=False, implementations=("library",), grouped="always"),
        TritonOptions(use_cache=False, implementations=("triton",), merge_siblings=False, grouped="always"),
    ],
    ids=["grouped", "library", "library, nothing moved", "concat copied", "library, concat copied", "grouped, nothing merged"],
)
def test_every_technique_can_be_left_out(options):
    model = randomize_weights(make_small_inception())
    x = images(2, 1, 14, 14)
    fast = build(model, x, options)
    poison(fast)
    with count_launches() as launches:
        y = fast(x)

    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-6)
    copies = 2 if options.implementations == ("library",) or not options.concat_in_place else 0
    assert launches["concat_relu"] == copies
    assert bool(launches["conv2d_group"]) == (options.grouped == "always" and "triton" in options.implementations)
    assert bool(launches["conv2d_bias_relu"] + launches["conv2d_group"]) == ("triton" in options.implementations)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, None), (torch.bfloat16, 0.04)], ids=["float16", "bfloat16"])
def test_half_precision(dtype, tolerance):
    """Triton's interpreter cuts float32 off to bfloat16 where a GPU rounds it: twice the error, hence a bound of its
    own."""
    model = randomize_weights(fastcnn.create_model("simple_cnn"))
    fast = build(model, images(2, 1, 28, 28), dtype=dtype, check=False)

    report = fastcnn.verify(fast, model, images(2, 1, 28, 28), batch_sizes=(2,), tolerance=tolerance)
    assert report.passed, report.summary()
    assert fast(images(2, 1, 28, 28)).dtype == torch.float32


class RoundedProducts(TorchDispatchMode):
    """Products of operands rounded to TF32, as a GPU computes them; a CPU rounds none."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm):
            args = [round_to_tf32(value.contiguous()) if isinstance(value, Tensor) and value.dim() > 1 else value for value in args]
        return operation(*args, **(kwargs or {}))


@torch.no_grad()
def test_tf32_has_a_bound_of_its_own():
    """Twice what eager PyTorch with TF32 is off by: 2⁻¹¹ alone, which is what a CPU leaves of it, one network in two would miss."""
    model, x = randomize_weights(fastcnn.create_model("simple_cnn")), images(2, 1, 28, 28)
    fast = build(model, x, allow_tf32=True, check=False)
    exact = copy.deepcopy(model).double()(x.double())
    with RoundedProducts():
        eager_error = float((model(x).double() - exact).norm() / exact.norm())
    report = fastcnn.verify(fast, model, x)

    assert fast.allow_tf32
    assert report.tolerance >= 2.0**-11
    assert 2.0**-13 < report.relative_error < 2 * eager_error


@pytest.fixture(scope="module")
def small() -> tuple[OptimizedModule, nn.Module]:
    model = net(lambda s, x: s.b(F.relu(s.a(x))).mean((2, 3)), a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 5, 3))
    return build(model, images(2, 3, 8, 8)), model


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_any_batch(small, batch):
    fast, model = small

    torch.testing.assert_close(fast(images(batch, 3, 8, 8)), model(images(batch, 3, 8, 8)))


def test_any_memory_format_and_strides(small):
    fast, model = small
    x = images(2, 3, 8, 8)
    variants = (
        x.contiguous(memory_format=torch.channels_last),
        images(2, 3, 8, 16)[..., ::2],
        x.expand(2, 3, 8, 8),
        images(1, 3, 8, 8).expand(3, -1, -1, -1),
    )

    for variant in variants:
        torch.testing.assert_close(fast(variant), model(variant))


def test_results_are_the_callers(small):
    fast, _ = small
    x = images(2, 3, 8, 8)
    first = fast(x)
    kept = first.clone()
    first_again = fast(images(2, 3, 8, 8, seed=1))

    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    first.fill_(0)
    torch.testing.assert_close(first_again, fast(images(2, 3, 8, 8, seed=1)), rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_nan_and_infinity_run_on_the_engine_itself(small, value):
    fast, model = small
    x = images(2, 3, 8, 8)
    x[1, 1, 3, 3] = value
    with count_launches() as launches:
        y = fast(x)

    torch.testing.assert_close(y, model(x), equal_nan=True)
    assert launches


def test_threads(small):
    fast, model = small
    inputs = [images(1 + seed % 3, 3, 8, 8, seed=seed) for seed in range(6)]
    outputs: list[Tensor | None] = [None] * len(inputs)

    def work(index: int) -> None:
        outputs[index] = fast(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for x, y in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(y, model(x))


def test_plan_tells_kernels_launches_and_memory():
    fast = build(randomize_weights(make_small_inception()), images(2, 1, 14, 14), TritonOptions(use_cache=False, grouped="always"))
    fast(images(2, 1, 14, 14))
    plan = fast.plan
    concats = [row for row in plan.rows if row.op == "cat"]

    assert [(row.kernel, row.launch, row.why) for row in concats] == [("none", None, "every member is written in place")] * 2
    launches = [row.launch for row in plan.rows if row.launch is not None]
    assert sorted(set(launches)) == list(range(max(launches) + 1))
    assert len(launches) > len(set(launches))  # grouped
    assert plan.memory["arena"] > 0
    assert plan.memory["weights"] > 0
    assert "memory: weights" in str(plan)
    assert {"merge_sibling_projections", "fuse_convolution_epilogue"} <= {report.name for report in plan.passes}


def test_memory_is_reused():
    parts = {f"c{index}": nn.Conv2d(4, 4, 3, padding=1) for index in range(6)}

    def forward(s, x: Tensor) -> Tensor:
        for index in range(6):
            x = F.relu(getattr(s, f"c{index}")(x))
        return x

    fast = build(net(forward, **parts), images(1, 4, 16, 16))
    fast(images(1, 4, 16, 16))

    assert fast.plan.memory["arena"] == 2 * 4 * 4 * 16 * 16


def test_a_model_that_mixes_pictures_is_never_filled_up(monkeypatch):
    model = net(lambda s, x: s.a(x) - s.a(x).mean(0, keepdim=True), a=nn.Conv2d(3, 4, 1))
    fast = build(model, images(2, 3, 6, 6))

    for batch in (1, 2, 3):
        torch.testing.assert_close(fast(images(batch, 3, 6, 6)), model(images(batch, 3, 6, 6)))


def test_several_outputs_and_a_view_of_one():
    def forward(s, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(s.a(x))
        return {"features": y, "half": y[:, :2], "pooled": y.mean((2, 3)), "input": x}

    model = net(forward, a=nn.Conv2d(3, 4, 3))
    fast = build(model, images(2, 3, 6, 6))
    y, wanted = fast(images(2, 3, 6, 6)), model(images(2, 3, 6, 6))

    assert y.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(y[name], wanted[name])


def test_save_and_load(tmp_path):
    model = randomize_weights(fastcnn.create_model("simple_cnn"))
    fast = build(model, images(2, 1, 28, 28))
    loaded = fastcnn.load(fastcnn.save(fast, tmp_path / "net.fast"))

    assert loaded.backend == "triton"
    torch.testing.assert_close(loaded(images(3, 1, 28, 28)), fast(images(3, 1, 28, 28)), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_a_dtype_that_it_lacks(dtype):
    with pytest.raises(BackendError, match=r"backend 'triton': it computes in float16, bfloat16, float32, not float64"):
        build(fastcnn.create_model("simple_cnn"), images(1, 1, 28, 28), dtype=dtype)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr("fastcnn.engines.triton.engine._interprets", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(BackendError, match=r"^backend 'triton' cannot run here: there is no CUDA device$"):
        fastcnn.optimize(fastcnn.create_model("simple_cnn"), images(1, 1, 28, 28), backend="triton")
    assert "move model and example there" in (TritonEngine().unsupported(Target(torch.device("cpu"), torch.float32)) or "")


def test_auto_does_not_try_the_interpreter():
    fast = fastcnn.optimize(fastcnn.create_model("simple_cnn"), images(1, 1, 28, 28))

    assert {candidate.backend: candidate.why for candidate in fast.plan.choice}["triton"].startswith("Triton interprets its kernels")


@pytest.mark.parametrize("name", ["triton_tma", "triton"])
def test_float16_through_one_kernel(name):
    """Channel counts of 8 keep every slice aligned, as the TMA wants it; a stride, a stem of 3 channels and a slice at
    4 do not."""

    def forward(s, x: Tensor) -> Tensor:
        y = F.relu(s.stem(x))
        branches = [F.relu(s.a(y)), F.relu(s.c(F.relu(s.b(y)))), F.relu(s.d(y))]
        z = torch.cat(branches, 1)
        return s.f(F.relu(s.e(z)) + z).mean((2, 3))

    parts = {
        "stem": nn.Conv2d(3, 16, 3, stride=2),
        "a": nn.Conv2d(16, 8, 1),
        "b": nn.Conv2d(16, 12, 1),
        "c": nn.Conv2d(12, 16, 3, padding=1),
        "d": nn.Conv2d(16, 8, (1, 7), padding=(0, 3)),
        "e": nn.Conv2d(32, 32, 3, padding=1),
        "f": nn.Conv2d(32, 5, 3, stride=2),
    }
    model = net(forward, **parts)
    fast = build(model, images(2, 3, 15, 17), TritonOptions(use_cache=False, implementations=(name, "triton", "triton_stem")), dtype=torch.float16)
    poison(fast)
    fastcnn.verify(fast, model, images(2, 3, 15, 17), batch_sizes=(2,)).require(name)
    kernels = [row.kernel for row in fast.plan.rows if row.op in ("conv2d", "fused_conv2d")]

    assert any(kernel.startswith("triton TMA") for kernel in kernels) == (name == "triton_tma")


def test_results_that_are_chosen_anew_since_they_do_not_lie_aligned():
    """12 of 16 channels are aligned in their concat, and not where a library leaves them: what reads them cannot be the
    TMA's."""

    def forward(s, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(s.stem(x))
        a, b = F.relu(s.a(y)), F.relu(s.b(y))
        return s.d(torch.cat([a, b], 1)).mean((2, 3)), s.d(F.relu(s.c(a))).mean((2, 3))

    parts = {
        "stem": nn.Conv2d(3, 16, 3, padding=1),
        "a": nn.Conv2d(16, 12, 3, stride=2, padding=1),
        "b": nn.Conv2d(16, 4, 3, stride=2, padding=1),
        "c": nn.Conv2d(12, 16, 3, padding=1),
        "d": nn.Conv2d(16, 16, 1),
    }
    model = net(forward, **parts)
    x = images(2, 3, 8, 8)
    fast = build(model, x, TritonOptions(use_cache=False, implementations=("triton_tma", "library")), dtype=torch.float16, check=False)
    fast(x)
    poison(fast)

    for y, wanted in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(y, wanted, rtol=1e-2, atol=1e-3)
    kernels = {row.name: row.kernel for row in fast.plan.rows}
    assert kernels["c"] == "aten::conv2d + relu"
    assert kernels["d"].startswith("triton TMA")
