from __future__ import annotations

import copy

import pytest
import torch

from fastcnn.bench.peers.base import placed
from fastcnn.bench.peers.subject import Subject
from fastcnn.errors import BackendError


def test_weights_elsewhere_are_an_error(subject: Subject, x: torch.Tensor) -> None:
    assert placed(subject.model, x) == {"device": "cpu", "dtype": "float32"}
    with pytest.raises(BackendError, match=r"weights are torch.float64 on cpu where torch.float32 on cpu was asked for"):
        placed(copy.deepcopy(subject.model).double(), x)
