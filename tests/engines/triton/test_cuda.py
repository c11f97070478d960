"""The engine on a GPU: `pytest -m cuda tests/engines/triton`. Every model in every precision, what CUDA graphs and
streams must not break, memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net
from narrowing import narrow
from support import randomize_weights
from torch import Tensor, nn

import fastcnn
from fastcnn.engines.triton.engine import TritonEngine
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.errors import DeviceMemoryError
from fastcnn.models.registry import list_models, model_spec
from fastcnn.optimization import Builder
from fastcnn.optimized_module import OptimizedModule

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")
# Predicted choices: measuring each model's layers would take minutes, and is another test.
PREDICTED = TritonOptions(tuning_seconds=0, use_cache=False, grouped="always")
PRECISIONS = {
    "fp32": {"dtype": torch.float32},
    "tf32": {"dtype": torch.float32, "allow_tf32": True},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
}


def build(model: nn.Module, x: Tensor, options: TritonOptions = PREDICTED, **keywords: object) -> OptimizedModule:
    return Builder(model, x, **keywords).build(TritonEngine(options))


def block(s, x: Tensor) -> Tensor:
    y = F.relu(s.stem(x))
    branches = [F.relu(s.a(y)), F.relu(s.b2(F.relu(s.b1(y)))), F.relu(s.c(F.avg_pool2d(y, 3, 1, 1))), F.max_pool2d(y, 3, 1, 1)]
    z = torch.cat(branches, 1)
    return s.fc(F.adaptive_avg_pool2d(F.relu(s.d(z) + z), 1).flatten(1))


def small_model() -> nn.Module:
    parts = {
        "stem": nn.Conv2d(3, 32, 3, stride=2),
        "a": nn.Conv2d(32, 16, 1),
        "b1": nn.Conv2d(32, 16, 1),
        "b2": nn.Conv2d(16, 32, 3, padding=1),
        "c": nn.Conv2d(32, 16, 1),
        "d": nn.Conv2d(96, 96, 3, padding=1),
        "fc": nn.Linear(96, 10),
    }
    return net(block, **parts).to(CUDA)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list_models())
def test_every_model(name, precision):
    model = randomize_weights(fastcnn.create_model(name)).to(CUDA)
    size = model_spec(name).input_size
    fast = build(model, images(8, *size).to(CUDA), **PRECISIONS[precision])

    report = fastcnn.verify(fast, model, images(8, *size, seed=1).to(CUDA), batch_sizes=(1, 3, 8, 32))
    assert report.passed, report.summary()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("implementations", [("library",), ("triton", "library"), ("triton_tma", "triton", "library"), ("triton_stem", "library")])
@pytest.mark.parametrize("grouped", ["always", "never"])
def test_every_implementation(implementations, grouped, precision):
    model = small_model()
    options = TritonOptions(tuning_seconds=0, use_cache=False, grouped=grouped, implementations=implementations)
    fast = build(model, images(4, 3, 33, 35).to(CUDA), options, **PRECISIONS[precision])

    report = fastcnn.verify(fast, model, images(4, 3, 33, 35).to(CUDA), batch_sizes=(1, 2, 3, 17))
    assert report.passed, report.summary()


def test_tuning_measures_and_remembers(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path))
    model = small_model()
    x = images(4, 3, 33, 35).to(CUDA)
    fast = build(model, x, TritonOptions())
    rows = [row for row in fast.plan.rows if "conv2d" in row.op]

    assert any("fastest of" in row.why or "as fast as" in row.why for row in rows)
    assert all(row.milliseconds and row.milliseconds > 0 for row in rows)
    assert list(tmp_path.glob("convolutions-*.json"))
    again = build(model, x, TritonOptions(tuning_seconds=0))
    assert [row.kernel for row in again.plan.rows] == [row.kernel for row in fast.plan.rows]


@pytest.fixture(scope="module")
def fast_and_model() -> tuple[OptimizedModule, nn.Module]:
    model = small_model()
    return build(model, images(4, 3, 33, 35).to(CUDA)), model


def close(fast: OptimizedModule, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model.double()(x.double()).float(), rtol=1e-4, atol=1e-5)
    model.float()


def test_batches_between_graphs_and_beyond(fast_and_model):
    for batch in (4, 1, 3, 5, 64, 65, 2, 4):
        close(*fast_and_model, images(batch, 3, 33, 35, seed=batch).to(CUDA))
    assert fast_and_model[0](images(0, 3, 33, 35).to(CUDA)).shape == (0, 10)


def test_results_of_earlier_calls_stay(fast_and_model):
    fast, _ = fast_and_model
    inputs = [images(4, 3, 33, 35, seed=seed).to(CUDA) for seed in range(6)]
    outputs = [fast(x) for x in inputs]

    for x, y in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(fast(x), y, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_and_infinity(value, precision):
    model = small_model()
    fast = build(model, images(4, 3, 33, 35).to(CUDA), **PRECISIONS[precision])
    x = images(4, 3, 33, 35).to(CUDA)
    x[2, 1, 10, 10] = value

    assert fast(x).isnan().any(1).tolist() == model(x).isnan().any(1).tolist()


def test_streams_and_threads(fast_and_model):
    fast, model = fast_and_model
    inputs = [images(1 + seed % 4, 3, 33, 35, seed=seed).to(CUDA) for seed in range(24)]
    with torch.no_grad():
        wanted = [model.double()(x.double()).float() for x in inputs]
    model.float()
    outputs: list[Tensor | None] = [None] * len(inputs)
    torch.cuda.synchronize()

    def work(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for index in range(first, len(inputs), 4):
                outputs[index] = fast(inputs[index])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for output, truth in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(output, truth, rtol=1e-4, atol=1e-5)


def test_the_callers_tf32_switches_do_not_matter(fast_and_model):
    fast, _ = fast_and_model
    x = images(6, 3, 33, 35).to(CUDA)
    before = fast(x)
    with fastcnn.precision.float32_products(tf32=True):
        torch.testing.assert_close(fast(x), before, rtol=0, atol=0)
        fresh = build(small_model(), x)
    assert fastcnn.verify(fresh, small_model(), x).relative_error < 1e-5


def test_out_of_memory_leaves_the_module_usable(fast_and_model):
    fast, model = fast_and_model
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(max(free - 512 * 2**20, 0), dtype=torch.uint8, device=CUDA)
    try:
        with pytest.raises(DeviceMemoryError, match=r"out of GPU memory at a batch of 40000: .* give smaller batches"):
            fast(images(1, 3, 33, 35).to(CUDA).expand(40_000, -1, -1, -1))
        close(fast, model, images(3, 3, 33, 35).to(CUDA))
    finally:
        del hog
        torch.cuda.empty_cache()


@pytest.mark.parametrize("name", ["inception_v3", "resnet50", "densenet121"])
def test_peak_memory_is_below_eagers(name):
    model = randomize_weights(fastcnn.create_model(name)).to(CUDA, torch.float16)
    x = images(32, *model_spec(name).input_size).to(CUDA, torch.float16)

    def peak(run) -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    last_ones = model.to(memory_format=torch.channels_last)
    last_ones(x.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        eager = peak(lambda: last_ones(x.contiguous(memory_format=torch.channels_last)))
    fast = Builder(model, x, check=False).build(TritonEngine(PREDICTED))
    fast(x)
    memory = fast.plan.memory
    calls = peak(lambda: fast(x))

    assert memory["arena"] + memory["inputs"] + calls < eager + x.numel() * x.element_size()


def test_compute_sanitizer_finds_nothing(tmp_path):
    """Every kernel of a narrow Inception-v3, out-of-bounds and misaligned accesses."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not installed")
    script = tmp_path / "case.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(__file__.rpartition('/engines/')[0])!r})\n"
        "import fastcnn\n"
        "from narrowing import narrow\n"
        "from fastcnn.engines.triton.engine import TritonEngine\n"
        "from fastcnn.engines.triton.options import TritonOptions\n"
        "from fastcnn.optimization import Builder\n"
        "model = narrow(fastcnn.create_model('inception_v3', aux_logits=False), 16).cuda().half()\n"
        "x = torch.rand(3, 3, 79, 83).cuda().half()\n"
        "for names in (('triton_stem', 'triton'), ('triton_stem', 'triton_tma', 'triton')):\n"
        "    for grouped in ('always', 'never'):\n"
        "        options = TritonOptions(tuning_seconds=0, use_cache=False, cuda_graph=False, grouped=grouped, implementations=names)\n"
        "        Builder(model, x, check=False).build(TritonEngine(options))(x)\n"
        "torch.cuda.synchronize()\n"
        "print('done')\n",
        encoding="utf-8",
    )
    done = subprocess.run([tool, "--error-exitcode", "9", sys.executable, str(script)], capture_output=True, text=True, timeout=1200, check=False)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "done" in done.stdout


def test_a_narrow_inception_is_tuned_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path))
    model = randomize_weights(narrow(fastcnn.create_model("inception_v3", aux_logits=False), 8)).to(CUDA)
    x = images(2, 3, 107, 107).to(CUDA)
    fast = build(model, x, TritonOptions(tuning_seconds=20), dtype=torch.float16)

    report = fastcnn.verify(fast, model, x, batch_sizes=(1, 2, 3))
    assert report.passed, report.summary()
