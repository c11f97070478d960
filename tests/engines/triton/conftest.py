"""The engine runs in Triton's interpreter here, on CPU tensors, unless `-m cuda` is given: see interpreting.py."""

from __future__ import annotations

import importlib.util

from interpreting import device, interpreter_stays_on, launches, pytest_configure  # noqa: F401

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
