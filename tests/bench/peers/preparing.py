"""What the tests of single rows share."""

from __future__ import annotations

import pytest
import torch

from fastcnn.bench.peers.base import Prepared
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS

COMPILED = ("torch_compile", "torch_compile_freezing")
THREADS = 2


def prepare_row(name: str, subject: Subject, x: torch.Tensor) -> Prepared:
    """The row `name`, ready to run; the test is skipped where the row cannot run here."""
    peer = PEERS[name]()
    reason = peer.available()
    if reason:
        pytest.skip(reason)
    torch.set_num_threads(THREADS)
    with subject:
        return peer.prepare(subject, x, THREADS)
