"""What every row is tried with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def x(input_shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(input_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
