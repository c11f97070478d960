"""The engine runs in Triton's interpreter here, on CPU tensors, unless `-m cuda` is given: see interpreting.py."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
from interpreting import device, interpreter_stays_on, launches, pytest_configure  # noqa: F401

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def sums_are_not_checked_for_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the interpreter's time; the tests of the kernels themselves have the check."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
