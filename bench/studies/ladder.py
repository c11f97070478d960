"""The ladder of techniques: what each one adds to those before it, on one model, measured like any other row.

A rung is a `Peer` with a title. `RUNGS` holds those of each device in order. To add one, write a class and put it in its place: it is checked against
the reference, timed in turns with the others, and compared with the rung before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fastcnn.bench.peers.base import Peer, Prepared, inference, placed
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.torch import EVERYWHERE, Eager, EagerChannelsLast
from fastcnn.bench.records.result import GroupResult, LadderRung, Status
from fastcnn.bench.records.statistics import speed_ratio
from fastcnn.engines import available_backends
from fastcnn.engines.torch_engine import TorchEngine
from fastcnn.engines.triton.engine import TritonEngine
from fastcnn.engines.triton.options import IMPLEMENTATIONS, TritonOptions
from fastcnn.errors import BackendError
from fastcnn.graph.capture import capture
from fastcnn.graph.passes import run_passes
from fastcnn.graph.plan import PassReport
from fastcnn.optimization import Builder
from fastcnn.precision import Precision

FOLDING = ("drop_dropout", "fold_constants", "fold_batch_norm", "fold_input_normalization")
MOVING_POOLS = ("move_pool_behind_projection", "pool_to_depthwise_convolution")
MERGING = ("merge_sibling_projections",)


class Rung(Peer):
    """One technique on top of those before it. `name` is the technique's key, `title` what people read."""

    title: ClassVar[str]
    devices = EVERYWHERE


class PlainRung(Rung, Eager):
    """Where the ladder stands: nothing was done to the model."""

    name = "eager"
    title = "eager PyTorch"


class ChannelsLastRung(Rung, EagerChannelsLast):
    """The layout that convolutions are fastest in."""

    name = "channels_last"
    title = "weights and activations channels_last"


class FoldedRung(Rung):
    """The captured graph on plain ATen operations: BatchNorm is gone, bias and ReLU are not yet part of the convolution."""

    name = "folded"
    title = "BatchNorm folded into the convolutions"

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """The passes that fold, the constants in channels_last, and the module that torch.fx writes of it."""
        graph, reports = run_passes(capture(subject.model, example), FOLDING)
        graph.cast_constants(subject.precision.dtype)
        module = graph.module
        for name, tensor in graph.constants().items():
            if tensor.dim() == 4:
                graph.set_constant(name, tensor.contiguous(memory_format=torch.channels_last))

        def run(x: Tensor) -> Tensor:
            with torch.inference_mode():
                return module(x.contiguous(memory_format=torch.channels_last))[0]

        return Prepared(run, {"passes": _fired(reports), **placed(module, example)})


class EngineRung(Rung):
    """The torch engine on the graph that `passes` went over; the engine itself fuses bias, residual add and ReLU into the convolution."""

    passes: ClassVar[tuple[str, ...]] = FOLDING

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Builds the engine. Raises BackendError where it fused nothing."""
        engine = TorchEngine(self.passes)
        tf32 = subject.precision is Precision.tf32
        # The benchmark checks every row itself.
        module = Builder(subject.model, example, allow_tf32=tf32, check=False).build(engine)
        fused = sum(row.fused for row in module.plan.rows)
        if not fused:
            raise BackendError("the torch engine fused no step of this model")
        return Prepared(inference(module), {"passes": _fired(module.plan.passes), "steps": str(len(module.plan.rows)), "fused steps": str(fused)})


class FusedEpilogueRung(EngineRung):
    """No pass more than in the rung before: what is new is the engine."""

    name = "fused_epilogue"
    title = "bias, residual add and ReLU in the convolution's kernel"


class PoolsMovedRung(EngineRung):
    """The passes that move pools."""

    name = "pools_moved"
    title = "average pools behind their projections"
    passes = FOLDING + MOVING_POOLS


class SiblingsMergedRung(EngineRung):
    """The pass that merges siblings."""

    name = "siblings_merged"
    title = "sibling 1×1 convolutions merged"
    passes = FOLDING + MOVING_POOLS + MERGING


class TritonRung(Rung):
    """The triton engine with `options`, and what it made of them as proof."""

    devices = ("cuda",)
    options: ClassVar[TritonOptions]

    def missing(self) -> str | None:
        """What the triton engine says that it lacks."""
        return available_backends()["triton"]

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Builds the engine, and counts its launches by what computes them."""
        tf32 = subject.precision is Precision.tf32
        module = Builder(subject.model, example, allow_tf32=tf32, check=False).build(TritonEngine(self.options))
        module(example)
        kernels = Counter(row.kernel.partition(" ")[0] for row in module.plan.rows)
        launches = len({row.launch for row in module.plan.rows if row.launch is not None})
        memory = {f"{what} bytes": str(size) for what, size in module.plan.memory.items()}
        return Prepared(inference(module), {"launches": str(launches), **{f"by {name}": str(count) for name, count in kernels.items()}, **memory})


# Each of these takes one more technique than the one before it.
_LIBRARY = TritonOptions(
    move_pools=False,
    merge_siblings=False,
    concat_in_place=False,
    grouped="never",
    concurrent=False,
    cuda_graph=False,
    tuning_seconds=0,
    use_cache=False,
    implementations=("library",),
)
_IN_PLACE = replace(_LIBRARY, concat_in_place=True, implementations=IMPLEMENTATIONS)
_MOVED = replace(_IN_PLACE, move_pools=True)
_MERGED = replace(_MOVED, merge_siblings=True)
_GROUPED = replace(_MERGED, grouped="always")
_GRAPH = replace(_GROUPED, cuda_graph=True)
_CONCURRENT = replace(_GRAPH, concurrent=True)


class LibraryRung(TritonRung):
    """The engine with nothing of its own but the fused graph and one launch for each step."""

    name = "library_fused"
    title = "bias, residual add and ReLU in cuDNN's kernels, concats by our kernel"
    options = _LIBRARY


class ConcatInPlaceRung(TritonRung):
    """Branches write where the concat would have copied them."""

    name = "concat_in_place"
    title = "Triton convolutions that write into their slice of the concat"
    options = _IN_PLACE


class TritonPoolsMovedRung(TritonRung):
    """The pass that moves pools."""

    name = "pools_moved"
    title = "average pools behind their projections"
    options = _MOVED


class TritonSiblingsMergedRung(TritonRung):
    """The pass that merges siblings."""

    name = "siblings_merged"
    title = "sibling 1×1 convolutions merged"
    options = _MERGED


class GroupedRung(TritonRung):
    """Convolutions that do not need each other share a launch, always."""

    name = "grouped_launches"
    title = "independent convolutions in one launch"
    options = _GROUPED


class CudaGraphRung(TritonRung):
    """No launch costs the host anything."""

    name = "cuda_graph"
    title = "one CUDA graph"
    options = _GRAPH


class ConcurrentRung(TritonRung):
    """Launches that do not need each other run on several streams."""

    name = "concurrent"
    title = "launches of one level side by side"
    options = _CONCURRENT


class TunedRung(TritonRung):
    """The engine as `fastcnn.optimize` builds it."""

    name = "tuned"
    title = "each convolution's fastest implementation, measured"
    options = TritonOptions()


RUNGS: dict[str, tuple[type[Rung], ...]] = {
    "cpu": (PlainRung, ChannelsLastRung, FoldedRung, FusedEpilogueRung, PoolsMovedRung, SiblingsMergedRung),
    "cuda": (
        *(PlainRung, ChannelsLastRung, FoldedRung, LibraryRung, ConcatInPlaceRung, TritonPoolsMovedRung, TritonSiblingsMergedRung),
        *(GroupedRung, CudaGraphRung, ConcurrentRung, TunedRung),
    ),
}


def rungs_of(device: str) -> list[Rung]:
    """The rungs of a device, from the lowest."""
    return [rung() for rung in RUNGS[device]]


def ladder_of(group: GroupResult, rungs: Sequence[Rung]) -> list[LadderRung]:
    """The rungs of a measured group in their order, each compared with the timed one before it."""
    rows = {row.name: row for row in group.rows}
    ladder: list[LadderRung] = []
    before: LadderRung | None = None
    for rung in rungs:
        row = rows[rung.name]
        step = LadderRung(rung.name, rung.title, row.status, row.reason, row.rounds, None, row.relative_error, row.peak_memory_bytes, row.proof)
        if row.status is Status.TIMED:
            step.ratio = None if before is None else speed_ratio(step.rounds, before.rounds, before.technique)
            before = step
        ladder.append(step)
    return ladder


def _fired(reports: Sequence[PassReport]) -> str:
    return ", ".join(f"{report.name} {report.fired}×" for report in reports if report.fired) or "none"
