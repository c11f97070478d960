"""An optimized module in a service: many threads, an asyncio executor, forks and fresh processes, SIGTERM."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from service_support import answer_with
from soak.soaking import soak

import fastcnn

ENGINES = ("torch", "onnxruntime", "openvino", "ncnn")

SERVICE = """
import asyncio, signal, sys
from concurrent.futures import ThreadPoolExecutor
import torch, fastcnn

model = fastcnn.create_model("simple_cnn")
module = fastcnn.optimize(model, torch.rand(2, 1, 28, 28), backend=sys.argv[1])

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    loop, answered = asyncio.get_running_loop(), 0
    with ThreadPoolExecutor(4) as pool:
        async def client(number):
            nonlocal answered
            while not stop.is_set():
                x = torch.full((1 + number, 1, 28, 28), number / 4)
                y = await loop.run_in_executor(pool, module, x)
                assert torch.allclose(y, model(x), atol=1e-4)
                answered += 1
                if answered == 20:
                    print("serving", flush=True)
        with torch.inference_mode():
            await asyncio.gather(*map(client, range(4)))
    print("answered all", flush=True)

asyncio.run(main())
"""


def _skip_unless(engine: str) -> None:
    if engine in ("openvino", "ncnn"):
        pytest.importorskip(engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_get_the_answers_to_their_own_pictures(engine: str) -> None:
    """For a second; `make soak` goes on for an hour."""
    _skip_unless(engine)
    findings = soak(engine, "simple_cnn", 1.0)
    assert (findings.wrong, findings.errors) == (0, [])
    assert findings.calls > 8
    assert findings.pictures > findings.calls


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio has no signal handlers there")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_service_answers_what_it_has_and_ends_at_sigterm(engine: str) -> None:
    _skip_unless(engine)
    with subprocess.Popen([sys.executable, "-c", SERVICE, engine], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n", process.stderr.read() if process.stderr else ""
        process.send_signal(signal.SIGTERM)
        said, complaints = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "answered all\n"), complaints


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return fastcnn.create_model("simple_cnn")


def _child_says(method: str, make: Callable[[], fastcnn.OptimizedModule]) -> object:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer_with, args=(theirs, make))
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "the child hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_module_that_was_made_before_a_fork_says_so(model: torch.nn.Module, engine: str) -> None:
    _skip_unless(engine)
    x = torch.ones(2, 1, 28, 28)
    module = fastcnn.optimize(model, x, backend=engine)
    before = module(x)
    said = _child_says("fork", lambda: module)
    assert str(said).startswith(f"BackendError: this module was made before the process was forked, and its threads ({engine}) stayed behind")
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_is_loaded_in_a_spawned_process(model: torch.nn.Module, engine: str, tmp_path: Path) -> None:
    _skip_unless(engine)
    x = torch.ones(2, 1, 28, 28)
    module = fastcnn.optimize(model, x, backend=engine)
    fastcnn.save(module, tmp_path / "model.fast")
    said = _child_says("spawn", partial(fastcnn.load, tmp_path / "model.fast"))
    assert torch.allclose(torch.tensor(said), module(x), atol=1e-5)
