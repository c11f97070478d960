"""Fixtures for every test."""

from __future__ import annotations

import ctypes
import gc
import logging
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_processes import starting_them_forked
from slow_tests import pytest_addoption, pytest_collection_modifyitems, pytest_terminal_summary  # noqa: F401
from torchlib import make_table_once


def pytest_collection_finish() -> None:
    """Graphs are made of many small objects. Python's collector, which looks through all that were ever imported again and again while a network is
    captured, took an eighth of the time of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_collected_by_module() -> Iterator[None]:
    """Networks refer to themselves in circles, and their weights stay until these are found."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _logs_are_put_back() -> Iterator[None]:
    """A command in this process sends fastcnn's logs to stderr, where later tests do not see them."""
    logger = logging.getLogger("fastcnn")
    before = (logger.handlers, logger.level, logger.propagate, warnings.showwarning)
    yield
    logger.handlers, logger.propagate, warnings.showwarning = before[0], before[2], before[3]
    logger.setLevel(before[1])


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the repository: real data and trained weights that a clone does not have."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder `shared` with real data and weights is not beside the repository")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _fresh_processes_are_forked() -> Iterator[None]:
    """See fresh_processes.py; where there is no fork they are started as ever."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            # The module's own name for it: everybody else starts processes as ever.
            forking = types.SimpleNamespace(**{**vars(subprocess), "Popen": starting_them_forked(subprocess.Popen)})
            patch.setattr("fastcnn.export.runtimes.subprocess", forking)
        yield


@pytest.fixture(scope="session", autouse=True)
def _the_exporters_table_is_made_once() -> None:
    make_table_once()


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
