"""The rows that are PyTorch itself: eager, under a CUDA graph, as frozen TorchScript, and compiled."""

from __future__ import annotations

import os
import shutil
import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastcnn.bench.peers.base import Peer, Prepared, channels_last, inference, placed
from fastcnn.bench.peers.subject import Subject
from fastcnn.errors import BackendError

EVERYWHERE: tuple[str, ...] = ("cpu", "cuda")


class Eager(Peer):
    """The model as it stands, contiguous."""

    name = "eager"
    devices = EVERYWHERE

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """The reference itself, in inference mode."""
        return Prepared(inference(subject.model), {"layout": "contiguous", **placed(subject.model, example)})


class EagerChannelsLast(Peer):
    """The model with channels_last weights."""

    name = "eager_channels_last"
    devices = EVERYWHERE

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """A channels_last copy, in inference mode."""
        model = channels_last(subject.model)
        return Prepared(inference(model), {"layout": "channels_last", **placed(model, example)})


class EagerCudaGraph(Peer):
    """Eager channels_last, its launches recorded once and replayed as one CUDA graph; the input is copied into the graph's own buffer."""

    name = "eager_cuda_graph"
    devices = ("cuda",)

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Captures the graph. Raises BackendError where its replay writes nothing."""
        model = channels_last(subject.model)
        proof = {"layout": "channels_last", **placed(model, example)}
        with torch.inference_mode():
            static = example.clone()
            for _ in range(3):  # the first runs choose algorithms and allocate workspaces, which must not happen within a capture
                model(static)
            torch.cuda.synchronize(example.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(example.device)):
                output = model(static)
            output.zero_()
            graph.replay()
            if not output.any():
                raise BackendError("the replayed CUDA graph writes no output")

        def run(x: Tensor) -> Tensor:
            with torch.inference_mode():
                static.copy_(x)
                graph.replay()
                return output.clone()  # the next replay overwrites the buffer

        return Prepared(run, {**proof, "cuda graph": "captured, and seen to write its output"})


class TorchScriptFrozen(Peer):
    """The model traced and frozen; PyTorch fuses it in its first runs."""

    name = "torchscript_frozen"
    devices = EVERYWHERE

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Traces the reference on the example, without TorchScript's deprecation warnings."""
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # PyTorch has deprecated TorchScript; people who still run it want to see its figures
            frozen = torch.jit.freeze(torch.jit.trace(subject.model, example, check_trace=False))
        return Prepared(inference(frozen), {"nodes": str(len(list(frozen.graph.nodes()))), **placed(subject.model, example)})


class TorchCompile(Peer):
    """`torch.compile(model)` with its defaults, for the shape of the example."""

    name = "torch_compile"
    devices: ClassVar[tuple[str, ...]] = EVERYWHERE

    def missing(self) -> str | None:
        """The C++ compiler that Inductor calls."""
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
        if not any(shutil.which(compiler) for compiler in compilers):
            return f"torch.compile needs a C++ compiler, and there is no {' or '.join(compilers)} in the PATH"
        return None

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Compiles for the example's shape. Raises BackendError where nothing was compiled."""
        return self._compiled(subject.model, example)

    def release(self) -> None:
        """Drops what Dynamo compiled in this process."""
        # Compiled code counts against Dynamo's limit of versions per function, and holds on to its weights.
        torch._dynamo.reset()

    def _compiled(self, model: nn.Module, example: Tensor, mode: str | None = None) -> Prepared:
        from torch._dynamo.utils import counters

        def count() -> tuple[int, int, int]:
            hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
            return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), hits

        before = count()
        # dynamic=False: after a second batch size in one process the default would compile for any batch, which is slower at each.
        run = inference(torch.compile(model, dynamic=False, mode=mode))
        run(example)
        graphs, breaks, hits = (now - then for now, then in zip(count(), before, strict=True))
        if not graphs:
            raise BackendError("torch.compile compiled no graph: the model ran eagerly, or was compiled before and not released")
        # Compiling again what an earlier process compiled takes a third of the time: the set-up cost means little without this.
        proof = {"graphs": str(graphs), "graph breaks": str(breaks), "from PyTorch's cache": "yes" if hits else "no"}
        return Prepared(run, {**proof, **placed(model, example)})


class TorchCompileFreezing(TorchCompile):
    """torch.compile on a channels_last model whose weights are constants to the compiler: Inductor then packs them for oneDNN."""

    name = "torch_compile_freezing"
    devices = ("cpu",)

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """As `torch_compile`, with Inductor's freezing on while it compiles."""
        import torch._inductor.config as inductor

        # Compilation happens in the first call, which must therefore stand inside; patch() puts the old value back, also after an error.
        with inductor.patch(freezing=True):
            prepared = self._compiled(channels_last(subject.model), example)
        return Prepared(prepared.run, {**prepared.proof, "freezing": "on", "layout": "channels_last"})


class TorchCompileMaxAutotune(TorchCompile):
    """All that torch.compile has for a GPU: max-autotune (with CUDA graphs), weights frozen and folded, channels_last."""

    name = "torch_compile_max_autotune"
    devices = ("cuda",)

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Compiles, and runs until a CUDA graph was captured. Raises BackendError where none was."""
        import torch._inductor.config as inductor
        from torch._dynamo.utils import counters

        skipped, captured = counters["inductor"]["cudagraph_skips"], _cuda_graphs(example)
        with inductor.patch(freezing=True):
            prepared = self._compiled(channels_last(subject.model), example, mode="max-autotune")

            def run(x: Tensor) -> Tensor:
                torch.compiler.cudagraph_mark_step_begin()
                return prepared.run(x).clone()  # the next replay overwrites the graph's own output

            for _ in range(3):  # the first run warms up, the next one captures, and a replay shows that it can
                run(example)
        captured = _cuda_graphs(example) - captured
        if counters["inductor"]["cudagraph_skips"] > skipped or not captured:
            raise BackendError("torch.compile captured no CUDA graph of the model")
        graphs = {"cuda graphs": str(captured), "freezing": "on", "layout": "channels_last"}
        return Prepared(run, {**prepared.proof, **graphs})


def _cuda_graphs(example: Tensor) -> int:
    """How many CUDA graphs Inductor holds for the example's device."""
    from torch._inductor.cudagraph_trees import get_manager

    manager = get_manager(example.device.index or 0, create_if_none_exists=False)
    return sum(len(nodes) for nodes in (manager.roots or {}).values()) if manager is not None else 0
