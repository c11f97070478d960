"""The rows of a benchmark: every way of running a model on this machine that its user could choose, ours among them.

A row takes a contiguous NCHW float32 tensor and gives back a tensor, as an application would hand them over: what a runtime needs besides
(a memory format, a numpy array) is part of its time. Nothing is ever installed; a row that cannot run says why.
"""

from __future__ import annotations

import copy
import fnmatch
import importlib.util
import os
import shutil
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastcnn.errors import BackendError, UnknownNameError

Runner = Callable[[Tensor], Tensor]


class Subject:
    """The model under test and what several rows make from it. Use it as a context manager: leaving it removes its files.

    Attributes:
        model: the reference, in eval mode; rows that change it work on a copy.
        export_seconds: how long the plain ONNX export took; 0 before it was made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.export_seconds = 0.0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Subject:
        self._folder = tempfile.TemporaryDirectory(prefix="fastcnn-bench-")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def plain_onnx(self, example: Tensor) -> tuple[Path, float]:
        """What `torch.onnx.export` makes of the reference, without any help from fastcnn, and the seconds that an earlier row spent on it.

        The batch is dynamic: on Inception-v3 at batches 1 and 8 neither onnxruntime nor OpenVINO was measurably faster on a fixed one.
        """
        if self._folder is None:
            raise RuntimeError("Subject is a context manager: enter it first")
        path = Path(self._folder.name, "plain.onnx")
        if path.exists():
            return path, self.export_seconds
        start = time.perf_counter()
        # The exporter takes a batch of 1 for a constant.
        batch = torch.zeros(2, *example.shape[1:], dtype=example.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.model, (batch,), path, dynamo=True, external_data=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
            )
        self.export_seconds = time.perf_counter() - start
        return path, 0.0


@dataclass(frozen=True)
class Prepared:
    """A row that is ready to be timed.

    Attributes:
        run: takes and returns a tensor.
        proof: where and how it runs, read back from the runtime.
        reused_seconds: set-up work that an earlier row did for this one too.
    """

    run: Runner
    proof: Mapping[str, str]
    reused_seconds: float = 0.0


class Peer(ABC):
    """One row. Subclasses set `name` and say in `prepare` how the model is run."""

    name: ClassVar[str]
    ours: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def available(self, device: str = "cpu") -> str | None:
        """None if the row can run on `device`, else the reason in one line."""
        if device not in self.devices:
            return f"measured on {' and '.join(self.devices)} only, {device} is not supported yet"
        return self.missing()

    def missing(self) -> str | None:
        """What the row needs and this machine lacks, in one line."""
        return None

    @abstractmethod
    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Everything that comes before the first useful run.

        Args:
            example: an input as the row will get it, (N, C, H, W) float32.
            threads: how many the runtime may use; `torch.set_num_threads` was already called with it.

        Raises BackendError where the runtime does not run as the row's name says; whatever the runtime itself raises comes through.
        """

    def release(self) -> None:  # noqa: B027 (most rows have nothing to drop)
        """Called when the last run is over: drops what would otherwise live on in the process."""


class Eager(Peer):
    name = "eager"

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        return Prepared(_inference(subject.model), {"layout": "contiguous"})


class EagerChannelsLast(Peer):
    name = "eager_channels_last"

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        return Prepared(_inference(_channels_last(subject.model)), {"layout": "channels_last"})


class TorchScriptFrozen(Peer):
    name = "torchscript_frozen"

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # PyTorch has deprecated TorchScript; people who still run it want to see its figures
            frozen = torch.jit.freeze(torch.jit.trace(subject.model, example, check_trace=False))
        return Prepared(_inference(frozen), {"nodes": str(len(list(frozen.graph.nodes())))})


class TorchCompile(Peer):
    """`torch.compile(model)` with its defaults, for the shape of the example."""

    name = "torch_compile"

    def missing(self) -> str | None:
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
        if not any(shutil.which(compiler) for compiler in compilers):
            return f"torch.compile needs a C++ compiler, and there is no {' or '.join(compilers)} in the PATH"
        return None

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        return self._compiled(subject.model, example)

    def release(self) -> None:
        # Compiled code counts against Dynamo's limit of versions per function, and holds on to its weights.
        torch._dynamo.reset()

    def _compiled(self, model: nn.Module, example: Tensor) -> Prepared:
        from torch._dynamo.utils import counters

        def count() -> tuple[int, int, int]:
            hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
            return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), hits

        before = count()
        # dynamic=False: after a second batch size in one process the default would compile for any batch, which is slower at each.
        run = _inference(torch.compile(model, dynamic=False))
        run(example)
        graphs, breaks, hits = (now - then for now, then in zip(count(), before, strict=True))
        if not graphs:
            raise BackendError("torch.compile compiled no graph: the model ran eagerly, or was compiled before and not released")
        # Compiling again what an earlier process compiled takes a third of the time: the set-up cost means little without this.
        return Prepared(run, {"graphs": str(graphs), "graph breaks": str(breaks), "from PyTorch's cache": "yes" if hits else "no"})


class TorchCompileFreezing(TorchCompile):
    """torch.compile on a channels_last model whose weights are constants to the compiler: Inductor then packs them for oneDNN."""

    name = "torch_compile_freezing"

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        import torch._inductor.config as inductor

        # Compilation happens in the first call, which must therefore stand inside; patch() puts the old value back, also after an error.
        with inductor.patch(freezing=True):
            prepared = self._compiled(_channels_last(subject.model), example)
        return Prepared(prepared.run, {**prepared.proof, "freezing": "on", "layout": "channels_last"})


class OnnxRuntime(Peer):
    """onnxruntime's CPU provider on a plain `torch.onnx.export`; its threads spin between runs, as they do by default."""

    name = "onnxruntime"

    def missing(self) -> str | None:
        return _not_importable("onnxruntime")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        path, reused = subject.plain_onnx(example)
        run, proof = onnxruntime_runner(path, threads)
        return Prepared(run, proof, reused)


class OpenVino(Peer):
    """OpenVINO's CPU device on a plain `torch.onnx.export`, in float32: its own choice on some CPUs is bfloat16, another function."""

    name = "openvino"

    def missing(self) -> str | None:
        return _not_importable("openvino")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        import openvino

        path, reused = subject.plain_onnx(example)
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
        devices = list(compiled.get_property("EXECUTION_DEVICES"))
        if devices != ["CPU"]:
            raise BackendError(f"OpenVINO runs on {', '.join(devices)} where the CPU was asked for")
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision != "f32":
            raise BackendError(f"OpenVINO computes in {precision} where f32 was asked for")
        request = compiled.create_infer_request()

        def run(x: Tensor) -> Tensor:
            # The output array is a view of memory that the next run overwrites: the caller gets a copy, as from every other row.
            return torch.from_numpy(request.infer({0: x.numpy()}, share_inputs=True)[0])

        granted = compiled.get_property("INFERENCE_NUM_THREADS")
        return Prepared(run, {"device": "CPU", "precision": precision, "threads": str(granted)}, reused)


class Fastcnn(Peer):
    """`fastcnn.optimize`; a subclass names its backend."""

    name = "fastcnn"
    ours = True
    backend: ClassVar[str] = "auto"

    def missing(self) -> str | None:
        from fastcnn.engines import available_backends

        return None if self.backend == "auto" else available_backends().get(self.backend, f"fastcnn has no backend {self.backend}")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        import fastcnn

        fast = fastcnn.optimize(subject.model, example, backend=self.backend)
        if self.backend not in ("auto", fast.backend):
            raise BackendError(f"fastcnn.optimize gave back the backend {fast.backend} where {self.backend} was asked for")
        return Prepared(_inference(fast), {"backend": fast.backend, "threads": str(torch.get_num_threads())})


class FastcnnTorch(Fastcnn):
    name = "fastcnn_torch"
    backend = "torch"


class FastcnnOnnxRuntime(Fastcnn):
    name = "fastcnn_onnxruntime"
    backend = "onnxruntime"


class FastcnnOpenVino(Fastcnn):
    name = "fastcnn_openvino"
    backend = "openvino"


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Eager,
        EagerChannelsLast,
        TorchScriptFrozen,
        TorchCompile,
        TorchCompileFreezing,
        OnnxRuntime,
        OpenVino,
        FastcnnTorch,
        FastcnnOnnxRuntime,
        FastcnnOpenVino,
        Fastcnn,
    )
}


def select_peers(names: Sequence[str] | None) -> list[Peer]:
    """The rows by name or wildcard, in the order of the table; all of them for None. Raises UnknownNameError for a name that none has."""
    if names is None:
        return [peer() for peer in PEERS.values()]
    chosen: set[str] = set()
    for name in names:
        matching = fnmatch.filter(PEERS, name)
        if not matching:
            raise UnknownNameError("peer", name, PEERS)
        chosen.update(matching)
    return [peer() for name, peer in PEERS.items() if name in chosen]


def onnxruntime_runner(path: Path, threads: int) -> tuple[Runner, dict[str, str]]:
    """A session of onnxruntime's CPU provider on a file with one input, and the proof of where it runs.

    Raises BackendError where the session has another provider than the one asked for.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    providers = session.get_providers()
    if providers != ["CPUExecutionProvider"]:
        raise BackendError(f"onnxruntime runs on {', '.join(providers)} where the CPU provider was asked for")
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        outputs: list[Any] = session.run(None, {name: x.numpy()})
        return torch.from_numpy(outputs[0])

    return run, {"provider": providers[0], "threads": str(session.get_session_options().intra_op_num_threads)}


def _inference(module: Callable[[Tensor], Tensor]) -> Runner:
    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run


def _channels_last(model: nn.Module) -> nn.Module:
    """A copy whose convolution weights are channels_last; activations follow the weights from the first convolution on."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _not_importable(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"
