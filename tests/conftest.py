"""Fixtures for every test."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the repository: real data and trained weights that a clone does not have."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder `shared` with real data and weights is not beside the repository")
    return folder


_SS_DISABLE = 2


class _SignalStack(ctypes.Structure):
    """`stack_t` of signal.h."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def _signals_on_the_ordinary_stack() -> None:
    """Test processes have a small stack for signal handlers. OpenVINO turns AMX on, whose registers do not fit there: the next signal that Python
    handles, the end of a child process among them, would end the process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, _SS_DISABLE, 0)), None)
