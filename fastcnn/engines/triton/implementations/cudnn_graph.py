"""A convolution through cuDNN's graph API (package nvidia-cudnn-frontend), which writes into a channel slice as it is.

Convolution, bias, residual and ReLU are described as one graph; cuDNN ranks its plans for it, and a variant is a place
in that ranking. The bias is handed over in float32 even for float16: cuDNN then compiles one fused kernel that writes
any strides, where a bias of the dtype of the rest gets it to take a precompiled kernel and to copy slices through
workspace. Compiling takes a second or so, hence a plan is kept in memory for the process and on disk for the next one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import threading
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcnn.caches import cache_folder
from fastcnn.engines.triton.choices import Variant, describe_environment
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem, ConvWeights
from fastcnn.errors import BackendError
from fastcnn.files import replacing

log = logging.getLogger(__name__)

# Of cuDNN's ranking: those worth a second of compilation each, and those that a survey of a layer compiles.
TIMED_PLANS, _SURVEYED_PLANS = 3, 5
# Room for the partial sums of a split reduction; a plan that takes more copies whole tensors, and then the library's
# own memory is no worse.
_LARGEST_WORKSPACE = 64 << 20
# The frontend tells cuDNN that every tensor starts at such an address.
_ALIGNMENT = 16
# The first with unique ids for tensors; what is called here has kept its form since.
_OLDEST = (1, 14)

_TYPES = {torch.float16: "HALF", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT"}
_X, _WEIGHT, _BIAS, _RESIDUAL, _Y = range(1, 6)

# Sizes [N, C, H, W] and strides, in elements.
Layout = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ConvGraph:
    """One convolution as cuDNN is told of it: everything but the addresses. Its strides are those of the tensors at
    hand, since an input may come to lie elsewhere than where the problem that was measured had it."""

    dtype: str
    x: Layout
    weight: tuple[int, ...]
    residual: Layout | None
    y: Layout
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    relu: bool
    tf32: bool

    def describe(self, cudnn: Any, **where: Any) -> Any:
        """The operation graph, not yet validated. `where`: the `handle` or the `device_property` to plan for."""
        io, float32 = getattr(cudnn.data_type, self.dtype), cudnn.data_type.FLOAT
        graph = cudnn.pygraph(name="convolution", io_data_type=io, intermediate_data_type=float32, compute_data_type=float32, **where)

        def tensor(name: str, uid: int, layout: Layout, data_type: Any = io) -> Any:
            return graph.tensor(name=name, uid=uid, dim=list(layout[0]), stride=list(layout[1]), data_type=data_type)

        x, weight = tensor("x", _X, self.x), tensor("weight", _WEIGHT, (self.weight, _packed_strides(self.weight)))
        bias_size = (1, self.weight[0], 1, 1)
        bias = tensor("bias", _BIAS, (bias_size, _packed_strides(bias_size)), float32)
        geometry = {"padding": list(self.padding), "stride": list(self.stride), "dilation": list(self.dilation)}
        y = graph.conv_fprop(image=x, weight=weight, **geometry, compute_data_type=float32, name="convolution")
        y = graph.add(a=y, b=bias, compute_data_type=float32, name="add_bias")
        if self.residual is not None:
            y = graph.add(a=y, b=tensor("residual", _RESIDUAL, self.residual), compute_data_type=float32, name="add_residual")
        if self.relu:
            y = graph.relu(input=y, compute_data_type=float32, name="relu")
        y.set_output(True).set_uid(_Y).set_dim(list(self.y[0])).set_stride(list(self.y[1])).set_data_type(io)
        return graph

    def plan(self, cudnn: Any, rank: int, **where: Any) -> Any:
        """The graph with one plan built: that of this rank, or the next that builds, so that a choice made with another
        cuDNN still runs.

        Raises:
            BackendError: cuDNN has none.
        """
        refusals = (RuntimeError, ValueError, cudnn.cudnnGraphNotSupportedError)
        failure: Exception | None = None
        try:
            graph = self.describe(cudnn, **where)
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.deselect_numeric_notes(self._unwanted(cudnn.numerical_note))
            graph.deselect_workspace_greater_than(_LARGEST_WORKSPACE)
            count = graph.get_execution_plan_count()
            for step in range(count):
                try:
                    graph.build_plan_at_index((rank + step) % count)
                    return graph
                except refusals as error:
                    failure = error
        except refusals as error:
            failure = error
        reason = (str(failure or "").splitlines() or ["none is offered"])[0][:200]
        raise BackendError(f"cuDNN's graph API has no plan for {self.dtype} {self.x} with weight {self.weight}: {reason}") from failure

    def _unwanted(self, notes: Any) -> list[Any]:
        """What no plan may do: give other results for the same input, or compute in less precision than was asked
        for."""
        if self.dtype != "FLOAT":
            return [notes.NONDETERMINISTIC]
        return [notes.NONDETERMINISTIC, notes.DOWN_CONVERT_INPUTS, *([] if self.tf32 else [notes.TENSOR_CORE])]


class PlanCache:
    """Plans by graph, rank and device: each is built once in a process, by one thread, and read from disk where an
    earlier process built it.

    Plans are never dropped: a CUDA graph may hold a plan's kernels. As with compiled Triton kernels, disk is used
    whatever the engine's `use_cache` says, which is about choices. cuDNN allows a handle to one thread at a time, so
    one lock guards handle, stream and launch of a device.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._plans: dict[tuple[ConvGraph, int, torch.device], tuple[Any, int]] = {}
        self._handles: dict[torch.device, Any] = {}

    def run(self, described: ConvGraph, rank: int, device: torch.device, addresses: dict[int, int]) -> None:
        """Launch on PyTorch's current stream. addresses: on the device, by the tensor's unique id."""
        cudnn = load()
        with self._lock:
            handle = self._handle(cudnn, device)
            graph, size = self._plan(cudnn, described, rank, device)
            # PyTorch's allocator knows of captures and streams: the memory is given back once this stream is past the
            # launch.
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
            cudnn.set_stream(handle, torch.cuda.current_stream(device).cuda_stream)
            graph.execute(addresses, workspace, handle=handle)

    def _plan(self, cudnn: Any, described: ConvGraph, rank: int, device: torch.device) -> tuple[Any, int]:
        key = (described, rank, device)
        if key not in self._plans:
            handle, path = self._handle(cudnn, device), _path(cudnn, described, rank, device)
            with torch.cuda.device(device):
                graph = _read(cudnn, handle, path)
                if graph is None:
                    graph = described.plan(cudnn, rank, handle=handle)
                    _write(graph, path)
            self._plans[key] = graph, graph.get_workspace_size()
        return self._plans[key]

    def _handle(self, cudnn: Any, device: torch.device) -> Any:
        if device not in self._handles:
            with torch.cuda.device(device):
                self._handles[device] = cudnn.create_handle()
        return self._handles[device]


class CudnnGraphConvolution:
    """cuDNN's graph API; a variant is a place in cuDNN's ranking of its plans."""

    name = "cudnn_graph"
    in_place = True
    compiles_ahead = False  # cuDNN compiles its plans itself

    def __init__(self) -> None:
        self._plans = PlanCache()

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        """The graph has no groups, one destination and NHWC tensors; the package must be there."""
        if device.type != "cuda":
            return f"a {device.type} device"
        if problem.groups != 1 or len(problem.pieces) > 1 or not problem.input_channels_last:
            return "groups, several destinations, or an input that is not channels_last"
        if problem.dtype not in _TYPES:
            return str(problem.dtype)
        return missing()

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_PLANS) -> list[Variant]:
        """Places in cuDNN's ranking, the first one first."""
        return [(rank,) for rank in range(_SURVEYED_PLANS if most is None else most)]

    def leaves_epilogue(self, variant: Variant) -> bool:
        """Never: bias, residual and ReLU are part of the graph."""
        return False

    def run(self, problem: ConvProblem, variant: Variant, weights: ConvWeights, operands: ConvOperands) -> None:
        """One execution of the plan. A tensor that does not start at a multiple of 16 bytes is copied, and so is the
        result."""
        (destination,) = operands.destinations
        x, weight, residual = _aligned(operands.x), _aligned(weights.channels_last), None
        y = _aligned(destination)
        addresses = {_X: x.data_ptr(), _WEIGHT: weight.data_ptr(), _BIAS: weights.bias_float32.data_ptr(), _Y: y.data_ptr()}
        if operands.residual is not None:
            residual = _aligned(operands.residual)
            addresses[_RESIDUAL] = residual.data_ptr()
        described = ConvGraph(
            dtype=_TYPES[problem.dtype],
            x=layout_of(x),
            weight=tuple(weight.shape),
            residual=None if residual is None else layout_of(residual),
            y=layout_of(y),
            stride=problem.stride,
            padding=problem.padding,
            dilation=problem.dilation,
            relu=problem.relu,
            tf32=problem.tf32,
        )
        self._plans.run(described, variant[0], x.device, addresses)
        if y is not destination:
            destination.copy_(y)

    def label(self, problem: ConvProblem, variant: Variant) -> str:
        """The plan's place in the ranking."""
        return f"cudnn_graph plan {variant[0]}"


def layout_of(tensor: Tensor) -> Layout:
    """Sizes and strides of an activation in NHWC order. PyTorch leaves the strides of sizes of 1 open; cuDNN reads the
    memory format from them."""
    (n, c, h, w), (of_n, of_c, of_h, of_w) = tensor.shape, tensor.stride()
    if w == 1:
        of_w = of_h if h > 1 else of_n if n > 1 else c
    of_h = of_h if h > 1 else w * of_w
    of_n = of_n if n > 1 else h * of_h
    return (n, c, h, w), (of_n, of_c if c > 1 else 1, of_h, of_w)


def _packed_strides(size: Sequence[int]) -> tuple[int, ...]:
    """Of [N, C, H, W] that lies as NHWC without gaps."""
    _, c, h, w = size
    return c * h * w, 1, c * w, c


def _aligned(tensor: Tensor) -> Tensor:
    """Itself, or a copy in memory of its own."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone(memory_format=torch.channels_last)


@functools.cache
def missing() -> str | None:
    """Why the package cannot be used, or None."""
    try:
        load()
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def load() -> Any:
    """The package. PyTorch is imported before it, so both use one copy of cuDNN.

    Raises:
        ImportError: it is not installed, finds no cuDNN, or is too old.
    """
    try:
        cudnn = importlib.import_module("cudnn")
        version = tuple(int(part) for part in cudnn.__version__.split(".")[:2])
    except Exception as error:  # a broken installation must not take the other implementations with it
        raise ImportError(f"nvidia-cudnn-frontend cannot be imported, `pip install 'fastcnn[cudnn]'` brings it ({error})") from error
    if version < _OLDEST:
        raise ImportError(f"nvidia-cudnn-frontend is {cudnn.__version__}; {'.'.join(map(str, _OLDEST))} or newer is needed")
    return cudnn


# -- plans on disk -----------------------------------------------------------------------------------------------------


def _path(cudnn: Any, described: ConvGraph, rank: int, device: torch.device) -> Path:
    """A plan holds a compiled kernel: it belongs to one GPU with one driver and one cuDNN."""
    versions = {**describe_environment(device), "loaded": cudnn.backend_version(), "frontend": cudnn.__version__}
    key = json.dumps([versions, asdict(described), rank, _LARGEST_WORKSPACE], sort_keys=True)
    return cache_folder() / "cudnn-plans" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.plan"


def _read(cudnn: Any, handle: Any, path: Path) -> Any:
    """The plan that an earlier process left, or None; what cannot be read is built anew and replaced."""
    try:
        data = zlib.decompress(path.read_bytes())
        graph = cudnn.pygraph(handle=handle)
        graph.deserialize(handle, list(data))  # older frontends take no bytes
        return graph
    except FileNotFoundError:
        return None
    except Exception as error:
        log.debug("%s cannot be read and is ignored: %s", path, error)
        return None


def _write(graph: Any, path: Path) -> None:
    """Not every engine of cuDNN can be serialised; one that cannot be needs no compilation either."""
    try:
        data = zlib.compress(bytes(graph.serialize()))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_bytes(data)
    except Exception as error:
        log.debug("a cuDNN plan is not kept for the next process: %s", error)
