"""Where tests run Triton kernels, for the conftest.py of the folders that do.

Triton settles when a kernel is defined whether it will be compiled or interpreted, so one process does one of the two:
    pytest                the interpreter, on CPU tensors, on every machine
    pytest -m cuda        compiled, on a GPU
Tests of what the compiler makes of a kernel start a process of their own (kernels/compiling.py), so they run beside either.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

VARIABLE = "TRITON_INTERPRET"


def interpret_kernels() -> None:
    """Makes every kernel of `fastcnn.kernels` run in Triton's interpreter; does nothing where Triton is not installed.

    Triton reads `TRITON_INTERPRET` when a function is decorated. Something else in this process may have imported Triton without it (torchvision
    does), so functions decorated by then, in Triton's own library and in our kernels, are replaced by their interpreted selves under every
    name they have. The variable is put back afterwards: a process that another test starts must not inherit it.
    """
    if importlib.util.find_spec("triton") is None:
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        import triton
        import triton.language

        import fastcnn.kernels

        already_imported = [module for name, module in sys.modules.items() if name.startswith(("triton.language", "fastcnn.kernels"))]
        interpreted: dict[int, object] = {}
        for module in already_imported:
            for name, value in list(vars(module).items()):
                if isinstance(value, triton.runtime.JITFunction):
                    setattr(module, name, interpreted.setdefault(id(value), triton.jit(value.fn)))
        for module_info in pkgutil.iter_modules(fastcnn.kernels.__path__):
            with contextlib.suppress(Exception):  # a module that cannot be imported fails its own tests, not everyone's
                importlib.import_module(f"fastcnn.kernels.{module_info.name}")
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.option.markexpr
    if os.environ.get(VARIABLE) == "1" or "cuda" not in wanted or "not cuda" in wanted:
        interpret_kernels()


def _interpreted() -> bool:
    from fastcnn.kernels.concat import _concat_relu_kernel
    from fastcnn.kernels.launching import is_interpreted

    return is_interpreted(_concat_relu_kernel)


@pytest.fixture(autouse=True)
def interpreter_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
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
