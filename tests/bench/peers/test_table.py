from __future__ import annotations

import copy

import pytest
import torch

from fastcnn.bench.peers.base import Peer
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS, select_peers
from fastcnn.bench.records.rows import OUR_ROW, ROWS
from fastcnn.errors import UnknownNameError
from fastcnn.precision import Precision

from .preparing import COMPILED, prepare_row

EXACT = [name for name, peer in PEERS.items() if "cpu" in peer.devices and Precision.fp32 in peer.precisions and name not in COMPILED]


@pytest.mark.parametrize("name", EXACT)
def test_row_computes_the_model_and_keeps_it_as_it_was(name: str, subject: Subject, x: torch.Tensor) -> None:
    before = copy.deepcopy(subject.model.state_dict())
    prepared = prepare_row(name, subject, x)
    with torch.inference_mode():
        torch.testing.assert_close(prepared.run(x), subject.model(x))
        first = prepared.run(x)
        kept = first.clone()
        prepared.run(x + 1)
        torch.testing.assert_close(first, kept, rtol=0, atol=0)  # the next run does not write into what the last one gave back
    torch.testing.assert_close(dict(subject.model.state_dict()), dict(before), rtol=0, atol=0)
    assert all(parameter.is_contiguous() for parameter in subject.model.parameters())
    assert prepared.proof


def test_every_row_is_explained_in_the_order_of_the_table() -> None:
    assert list(ROWS) == list(PEERS)
    assert PEERS[OUR_ROW].ours
    assert max(map(len, ROWS.values())) + len(max(ROWS, key=len)) <= 76  # the help has two columns and margins on 80


def test_selecting_rows() -> None:
    def names(chosen: list[Peer]) -> list[str]:
        return [peer.name for peer in chosen]

    int8 = ["fastcnn_int8_onnxruntime", "fastcnn_int8_openvino"]
    of_cpu = [name for name, peer in PEERS.items() if "cpu" in peer.devices]
    beside = [*int8, "fastcnn_bf16_torch", "fastcnn_bf16_openvino"]
    assert names(select_peers(None)) == [name for name in of_cpu if name not in beside]
    assert names(select_peers(None, precision=Precision.int8)) == of_cpu
    assert names(select_peers(int8[:1])) == int8[:1]
    assert names(select_peers(None, "cuda")) == [name for name, peer in PEERS.items() if "cuda" in peer.devices]
    assert names(select_peers(["openvino", "eager", "eager"])) == ["eager", "openvino"]
    assert names(select_peers(["fastcnn_o*", "fastcnn"])) == ["fastcnn_onnxruntime", "fastcnn_openvino", "fastcnn"]
    assert names(select_peers(["*_tensorrt", "eager*"], "cuda")) == [
        "eager",
        "eager_channels_last",
        "eager_cuda_graph",
        "onnxruntime_tensorrt",
        "fastcnn_file_tensorrt",
    ]
    assert names(select_peers(["eager_cuda_graph"])) == ["eager_cuda_graph"]  # named in full: it is listed as absent
    with pytest.raises(UnknownNameError, match="did you mean onnxruntime"):
        select_peers(["onnxruntim"])
