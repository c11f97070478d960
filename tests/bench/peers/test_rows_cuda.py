from __future__ import annotations

from dataclasses import replace

import pytest

from fastcnn.bench.measuring.measure import Settings, measure_group
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS
from fastcnn.bench.records.result import Status
from fastcnn.precision import Precision


@pytest.mark.cuda
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if "cuda" in peer.devices])
def test_cuda_row_computes_the_model(name: str, precision: Precision, subject: Subject, settings: Settings) -> None:
    peer = PEERS[name]()
    reason = peer.available("cuda", precision)
    if reason:
        pytest.skip(reason)
    with Subject(subject.model, precision, "cuda") as moved:
        group = measure_group("tiny", moved, [peer], (4, 3, 8, 8), replace(settings, rounds=1))
    (row,) = group.rows
    assert (row.status, row.reason) == (Status.TIMED, None)
    assert row.end_to_end_rounds
