"""Graph passes, one file each. A pass edits a `CapturedGraph` and returns a `PassReport`; `run_passes` runs a backend's list on a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes.drop_dropout import drop_dropout
from fastcnn.graph.passes.fold_batch_norm import fold_batch_norm
from fastcnn.graph.passes.fold_constants import fold_constants
from fastcnn.graph.passes.fold_input_normalization import fold_input_normalization
from fastcnn.graph.passes.fuse_convolution_epilogue import fuse_convolution_epilogue
from fastcnn.graph.passes.merge_sibling_projections import merge_sibling_projections
from fastcnn.graph.passes.move_pool_behind_projection import move_pool_behind_projection
from fastcnn.graph.passes.pool_to_depthwise_convolution import pool_to_depthwise_convolution
from fastcnn.graph.plan import PassReport

Pass = Callable[[CapturedGraph], PassReport]

# In the order in which they must run: a later pass relies on what an earlier one folded.
PASSES: dict[str, Pass] = {
    function.__name__: function
    for function in (
        drop_dropout,
        fold_constants,
        fold_batch_norm,
        fold_input_normalization,
        move_pool_behind_projection,
        pool_to_depthwise_convolution,
        merge_sibling_projections,
        fuse_convolution_epilogue,
    )
}

# Exact in any runtime, and a gain or no loss in every one that was measured. Merging siblings is not among them: it cost ONNX Runtime 3 % on
# Inception-v3.
STANDARD_PASSES = (
    "drop_dropout",
    "fold_constants",
    "fold_batch_norm",
    "fold_input_normalization",
    "move_pool_behind_projection",
    "pool_to_depthwise_convolution",
)

# Of a graph that will be rounded to 8 bits. A pool moved behind its projection reads signed numbers that no ReLU has cut, and as a convolution it
# has weights to round; where it stood it reads the grid of the concat in front of it, and is no layer at all.
INT8_PASSES = tuple(name for name in STANDARD_PASSES if name not in ("move_pool_behind_projection", "pool_to_depthwise_convolution"))


def run_passes(captured: CapturedGraph, names: Sequence[str]) -> tuple[CapturedGraph, tuple[PassReport, ...]]:
    """Run the passes called `names`, in the order of `PASSES`, on a copy of `captured`; its constants are float64 where a pass computed them."""
    unknown = set(names) - set(PASSES)
    if unknown:
        raise ValueError(f"no pass is called {', '.join(sorted(unknown))}; known: {', '.join(PASSES)}")
    captured = captured.copy()
    reports = []
    for name, function in PASSES.items():
        if name in names:
            reports.append(function(captured))
            captured.tidy()
    return captured, tuple(reports)
