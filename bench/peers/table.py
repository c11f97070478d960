"""The rows of a benchmark: every way of running a model on this machine that its user could choose, ours among them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from fastcnn.bench.peers.base import Peer
from fastcnn.bench.peers.fastcnn import (
    Bfloat16OnOpenVino,
    Bfloat16OnTorch,
    Fastcnn,
    FastcnnNcnn,
    FastcnnOnnxRuntime,
    FastcnnOpenVino,
    FastcnnTorch,
    FastcnnTriton,
)
from fastcnn.bench.peers.ncnn import Ncnn
from fastcnn.bench.peers.runtimes import (
    FileInOnnxRuntime,
    FileInOnnxRuntimeCuda,
    FileInOpenVino,
    FileInTensorRt,
    Int8InOnnxRuntime,
    Int8InOpenVino,
    OnnxRuntime,
    OnnxRuntimeCuda,
    OnnxRuntimeTensorRt,
    OpenVino,
)
from fastcnn.bench.peers.torch import (
    Eager,
    EagerChannelsLast,
    EagerCudaGraph,
    TorchCompile,
    TorchCompileFreezing,
    TorchCompileMaxAutotune,
    TorchScriptFrozen,
)
from fastcnn.errors import UnknownNameError
from fastcnn.precision import Precision

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Eager,
        EagerChannelsLast,
        EagerCudaGraph,
        TorchScriptFrozen,
        TorchCompile,
        TorchCompileFreezing,
        TorchCompileMaxAutotune,
        OnnxRuntime,
        OnnxRuntimeCuda,
        OnnxRuntimeTensorRt,
        OpenVino,
        Ncnn,
        FileInOnnxRuntime,
        FileInOnnxRuntimeCuda,
        FileInTensorRt,
        FileInOpenVino,
        Int8InOnnxRuntime,
        Int8InOpenVino,
        Bfloat16OnTorch,
        Bfloat16OnOpenVino,
        FastcnnTorch,
        FastcnnOnnxRuntime,
        FastcnnOpenVino,
        FastcnnNcnn,
        FastcnnTriton,
        Fastcnn,
    )
}


def select_peers(names: Sequence[str] | None, device: str = "cpu", precision: Precision = Precision.fp32) -> list[Peer]:
    """The rows by name or wildcard, in the order of the table; all of them for None.

    Rows of another device, and those for int8 runs of a run that is none, are left out unless they are named in full: a CPU run has no use for a
    list of absent CUDA rows. Raises UnknownNameError for a name that no row has.
    """
    int8_only = (Precision.int8,)
    of_device = [
        name for name, peer in PEERS.items() if device in peer.devices and (precision is Precision.int8 or tuple(peer.precisions) != int8_only)
    ]
    chosen = set(of_device) if names is None else set[str]()
    for name in names or ():
        matching = fnmatch.filter(PEERS, name)
        if not matching:
            raise UnknownNameError("peer", name, PEERS)
        chosen.update({*matching} if name in PEERS else {*matching} & {*of_device} or matching)
    return [peer() for name, peer in PEERS.items() if name in chosen]
