"""Turns Triton's interpreter on for every kernel of this process, whatever was imported before."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import sys

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
