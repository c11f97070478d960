"""ncnn computes what the reference computes, in float32, or says which operation it has no form for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net
from support import randomize_weights
from torch import nn

import fastcnn
from fastcnn.engines.ncnn_engine import NcnnEngine
from fastcnn.engines.ncnn_network import write_network
from fastcnn.errors import BackendError
from fastcnn.graph.capture import capture
from fastcnn.graph.passes import run_passes
from fastcnn.optimized_module import OptimizedModule

pytest.importorskip("ncnn", reason="ncnn is not installed (pip install 'fastcnn[ncnn]')")

SHAPE = (6, 12, 12)


def _conv(*args, **options):
    return nn.Conv2d(*args, **options)


FORMS = {
    "convolution": net(lambda s, x: s.c(x), c=_conv(6, 5, (3, 5), (2, 1), (0, 2), (1, 2))),
    "winograd with ReLU": net(lambda s, x: s.d(F.relu(s.c(x))), c=_conv(6, 16, 3, padding=1), d=_conv(16, 32, 3, padding=1, bias=False)),
    "groups": net(lambda s, x: s.d(s.c(x)), c=_conv(6, 12, 3, groups=3), d=_conv(12, 12, 3, groups=12, padding=1)),
    "residual": net(lambda s, x: F.relu(s.c(x) + x), c=_conv(6, 6, 3, padding=1)),
    "one value read three times": net(lambda s, x: torch.cat([y := s.c(x), F.relu(y), y + 1], 1), c=_conv(6, 4, 1)),
    "max pools": net(lambda s, x: F.max_pool2d(F.max_pool2d(x, 3, 2, 1), 2, ceil_mode=True)),
    "max pool, remainder left out": net(lambda s, x: F.max_pool2d(x, (3, 2), (2, 3))),
    "average pool with its padding": net(lambda s, x: F.avg_pool2d(x, 3, 1, 1)),
    "average pool, last window cut": net(lambda s, x: F.avg_pool2d(x, (5, 3), 2, ceil_mode=True)),
    "average pool without": net(lambda s, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "adaptive pools": net(lambda s, x: F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, (5, 7)), 1)),
    "head": net(lambda s, x: F.softmax(s.l(x.mean((2, 3))), 1), l=nn.Linear(6, 5)),
    "head with the map": net(lambda s, x: F.leaky_relu(s.l(x.flatten(1)), 0.2), l=nn.Linear(864, 5, bias=False)),
    "squeeze and excite": net(lambda s, x: x * torch.sigmoid(s.c(F.adaptive_avg_pool2d(x, 1))), c=_conv(6, 6, 1)),
    "channel shuffle": net(lambda s, x: x.view(x.size(0), 2, 3, 12, 12).transpose(1, 2).reshape(x.size(0), 6, 12, 12)),
    "parts": net(lambda s, x: torch.cat([part * 2 for part in reversed(x.split([1, 2, 3], 1))], 1) - x[:, :, 3:9].mean((2, 3), keepdim=True)),
    "permutation": net(lambda s, x: x.permute(0, 3, 1, 2).contiguous().flatten(2)),
    "padding": net(lambda s, x: F.pad(x, (1, 2, 0, 3), value=0.5)),
    "BatchNorm alone": net(lambda s, x: s.b(F.relu(x)), b=nn.BatchNorm2d(6)),
    "constants": net(lambda s, x: (x - s.mean) / s.std, mean=torch.randn(1, 6, 1, 1), std=torch.rand(6, 1, 1) + 1),
    "activations": net(
        lambda s, x: torch.cat(
            [F.silu(x), F.hardswish(x), F.hardsigmoid(x), F.relu6(x), F.elu(x), F.gelu(x), F.mish(x), x.tanh(), x.clamp(min=-0.5), -x.abs()], 1
        )
    ),
    "activation of two readers": net(lambda s, x: (y := s.c(x)) * F.relu6(y), c=_conv(6, 4, 3)),
    "slope": net(lambda s, x: s.p(s.c(x)), c=_conv(6, 4, 1), p=nn.PReLU(4)),
    "outputs": net(lambda s, x: {"same": x, "maps": [y := s.c(x), y], "logits": y.flatten(1)}, c=_conv(6, 3, 1)),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_at_several_batches(name: str) -> None:
    module = fastcnn.optimize(FORMS[name], images(2, *SHAPE), backend="ncnn")
    x = images(3, *SHAPE, seed=1)
    before = x.clone()
    report = fastcnn.verify(module, FORMS[name], x, batch_sizes=(1, 3))
    assert report.passed, report.summary()
    assert torch.equal(x, before)
    assert {row.kernel.split()[0] for row in module.plan.rows} <= {"ncnn"}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (net(lambda s, x: x.flip(3)), "operation flip"),
        (net(lambda s, x: x.sum(0, keepdim=True) + x), "sum"),
        (net(lambda s, x: x.mean(3)), "operation mean .*: only over the last two axes"),
        (net(lambda s, x: x * x.mean((0, 2, 3))[:, None, None]), "operation mean"),
        (net(lambda s, x: F.max_pool2d(x, 3, dilation=2)), "operation max_pool2d .*: ncnn has no dilated pools"),
        (net(lambda s, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)), "operation avg_pool2d .*: ncnn counts the padding"),
        (net(lambda s, x: F.avg_pool2d(x, 2, divisor_override=3)), "operation avg_pool2d .*: ncnn's average pools have no divisor"),
        (net(lambda s, x: F.conv2d(x, x.mean((0, 2, 3)).view(1, 6, 1, 1))), "ncnn cannot run the model: operation "),
        (net(lambda s, x: x.reshape(-1, 3, 12, 12)), "operation (reshape|view)"),
    ],
)
def test_an_operation_without_a_form_is_named(model: nn.Module, said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        fastcnn.optimize(model, images(2, *SHAPE), backend="ncnn")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def digits() -> tuple[OptimizedModule, nn.Module]:
    model = randomize_weights(fastcnn.create_model("inception_mnist"))
    return fastcnn.optimize(model, images(2, 1, 28, 28), backend="ncnn"), model


def test_a_model_its_plan_and_its_file(digits, tmp_path) -> None:
    module, model = digits
    x = images(3, 1, 28, 28)
    assert fastcnn.verify(module, model, x).passed
    assert [row.op for row in module.plan.rows if row.op == "BatchNorm"] == []
    loaded = fastcnn.load(fastcnn.save(module, tmp_path / "model.fast"))
    assert loaded.backend == "ncnn"
    assert torch.equal(loaded(x), module(x))


def test_activations_become_part_of_the_layer_in_front() -> None:
    rows = fastcnn.optimize(FORMS["winograd with ReLU"], images(2, *SHAPE), backend="ncnn").plan.rows
    assert [(row.op, row.folded, row.fused) for row in rows] == [("Convolution", ("relu",), True), ("Convolution", (), False)]


def test_a_residual_is_added_in_a_layer_of_its_own() -> None:
    rows = fastcnn.optimize(FORMS["residual"], images(2, *SHAPE), backend="ncnn").plan.rows
    assert [(row.op, row.folded) for row in rows] == [("Convolution", ()), ("BinaryOp", ()), ("ReLU", ())]


def test_nan_and_infinity_come_out_as_pytorch_gives_them(digits) -> None:
    module, model = digits
    x = images(3, 1, 28, 28)
    x[1, 0, 5, 5], x[2, 0, 3, 3] = float("nan"), float("inf")
    with torch.no_grad():
        wanted = model(x)
    assert torch.equal(module(x).isnan(), wanted.isnan())


def test_several_threads_at_once(digits) -> None:
    module, _ = digits
    inputs = [images(2, 1, 28, 28, seed=seed) for seed in range(4)]
    wanted = [module(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            if not torch.equal(module(inputs[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(BackendError, match="computes in float32 only"):
        fastcnn.optimize(FORMS["convolution"], images(1, *SHAPE), dtype=torch.bfloat16, backend="ncnn")


def test_what_the_runtime_loads_is_what_was_written() -> None:
    from fastcnn.runtimes.ncnn import Network

    graph, _ = run_passes(capture(FORMS["residual"], images(2, *SHAPE)), NcnnEngine().passes)
    written = write_network(graph)
    network = Network(written.param(), written.weights(), 1)
    assert [kind for _, kind in network.layers] == [layer.kind for layer in written.layers]
    with pytest.raises(BackendError, match="ncnn cannot load the weights"):
        Network(written.param(), [], 1)
    with pytest.raises(BackendError, match="ncnn cannot read the network"):
        Network("7767517\n1 1\nNoSuchLayer a 0 1 input\n", [], 1)


def test_the_import_leaves_the_environment_as_it_was_and_the_threads_asleep() -> None:
    code = """
import os
from fastcnn.runtimes.ncnn import import_ncnn
import_ncnn()
print("OMP_WAIT_POLICY" in os.environ)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"OMP_DISPLAY_ENV": "true"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert process.stdout.strip() == "False"
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in process.stderr
