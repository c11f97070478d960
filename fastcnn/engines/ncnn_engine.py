"""The graph as a network of ncnn on the CPU, which computes 3×3 convolutions by Winograd's algorithm."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcnn.engines.base import Lowered, on_tensors, require_one_picture
from fastcnn.engines.ncnn_layers import WrittenNetwork
from fastcnn.engines.ncnn_network import write_network
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES
from fastcnn.graph.plan import PlanRow, op_name
from fastcnn.runtimes.ncnn import Network
from fastcnn.target import Target


class NcnnEngine:
    """Runs on the CPU in float32. ncnn knows no batch: the pictures of one run after each other.

    It leaves no artifact: writing the network is copying the weights, and a saved file would hold them twice.

    Args:
        passes: names of the passes that run over a graph before it is lowered.
    """

    name = "ncnn"

    def __init__(self, passes: Sequence[str] = (*STANDARD_PASSES, "fuse_convolution_epilogue")) -> None:
        self.passes = tuple(passes)

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None where it can."""
        return None if importlib.util.find_spec("ncnn") else "ncnn is not installed (pip install 'fastcnn[ncnn]')"

    def unsupported(self, target: Target) -> str | None:
        """Why it cannot run on the target's device or in its dtype, or None where it can."""
        if target.device.type != "cpu":
            return f"runs on the CPU only, the input is on {target.device}"
        return None if target.dtype == torch.float32 else f"computes in float32 only, not in {target.dtype}"

    def unfit_for_auto(self) -> str | None:
        """None: `auto` always tries it."""
        return None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        """The graph as a network of ncnn; `artifact` is not read.

        Raises:
            BackendError: an operation has no form in ncnn, or ncnn refuses the network.
        """
        require_one_picture(captured, self.name)
        written = write_network(captured)
        network = Network(written.param(), written.weights(), torch.get_num_threads())
        rows = _rows(written)  # now: the written network holds the weights, which the loaded one has in its own layout
        outputs = written.outputs

        def run(x: NDArray[Any]) -> list[NDArray[Any]]:
            results = [np.empty((x.shape[0], *shape), np.float32) for _, shape in outputs]
            for number, picture in enumerate(np.ascontiguousarray(x)):
                for result, blob in zip(results, network.run(picture, [name for name, _ in outputs]), strict=True):
                    result[number] = blob.reshape(result.shape[1:])
            return results

        # Its ReLU gives 0 for NaN.
        return Lowered(on_tensors(run), lambda: rows, propagates_nan=False, run_array=run)


def _rows(written: WrittenNetwork) -> tuple[PlanRow, ...]:
    """One row for each layer that computes a node of the graph."""
    rows: list[PlanRow] = []
    for layer in written.layers:
        node = layer.node
        if node is None:
            continue
        shape = node.meta["shape"] if len(layer.outputs) == 1 else node.args[0].meta["shape"]  # type: ignore[union-attr]
        why = f"the form that ncnn has for {op_name(node)}"
        name = node.meta.get("path") or node.name
        rows.append(PlanRow(len(rows), name, layer.kind, layer.folded, shape, f"ncnn {layer.kind}", why, fused=bool(layer.folded)))
    return tuple(rows)
