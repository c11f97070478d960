"""Files that several tests read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from export_networks import EXPORTERS, SUFFIX, example, small


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_worker() -> Iterator[None]:
    """Where pytest-xdist spreads the tests over the cores, PyTorch's threads would only wait for each other."""
    before = torch.get_num_threads()
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=list(EXPORTERS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(format, file) of the small network; not to be changed."""
    path = tmp_path_factory.mktemp("exported") / f"small{SUFFIX[request.param]}"
    EXPORTERS[request.param](small(), path, example(), labels=["a", "b", "c", "d"])
    return request.param, path
