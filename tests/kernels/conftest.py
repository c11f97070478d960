"""Where the kernels of this folder's tests run.

Triton settles when a kernel is defined whether it will be compiled or interpreted, so one process does one of the two:
    pytest                the interpreter, on CPU tensors, on every machine
    pytest -m cuda        compiled, on a GPU
Tests of what the compiler makes of a kernel start a process of their own (compiling.py), so they run beside either.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from .interpreting import VARIABLE, interpret_kernels

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.option.markexpr
    if os.environ.get(VARIABLE) == "1" or "cuda" not in wanted or "not cuda" in wanted:
        interpret_kernels()


def _interpreted() -> bool:
    from fastcnn.kernels.concat import _concat_relu_kernel
    from fastcnn.kernels.launching import is_interpreted

    return is_interpreted(_concat_relu_kernel)


@pytest.fixture(autouse=True)
def _interpreter_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of Triton that are imported only when a kernel runs ask for the variable again."""
    if _interpreted():
        monkeypatch.setenv(VARIABLE, "1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, where kernels are interpreted, and a GPU, where they are compiled."""
    if request.param == "cpu" and not _interpreted():
        pytest.skip("the kernels of this process are compiled, so they cannot run on the CPU")
    if request.param == "cuda" and _interpreted():
        pytest.skip("the kernels of this process are interpreted; run `pytest -m cuda` to test them compiled")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def launches() -> Iterator[Counter[str]]:
    """The kernel launches of the test so far, by operation."""
    from fastcnn.kernels.launching import count_launches

    with count_launches() as counter:
        yield counter
