"""Lower a graph to the records of a TorchScript or `.pt2` archive, the same in every process and with no path of this machine in them."""

from __future__ import annotations

import functools
import io
import logging
import re
import warnings
import zipfile

import torch

from fastcnn.errors import RequestError
from fastcnn.export.archive import read_records
from fastcnn.export.lowering import deployed_module, dynamic_sizes, examples_for, refuse_foreign
from fastcnn.graph.capture import tracing
from fastcnn.graph.ir import CapturedGraph, aten

log = logging.getLogger(__name__)

# Pictures in a batch of any size: what plans memory ahead, such as ExecuTorch, needs a bound.
LARGEST_BATCH = 1024

# What torch.export notes on each node about where it came from: files of this machine, and ids of this process.
_ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


def lower_pt2(captured: CapturedGraph, batch_size: int | None) -> dict[str, bytes]:
    """Records of a `.pt2` archive.

    Raises:
        RequestError: torch.export refuses the graph.
    """
    refuse_foreign(captured, ".pt2")
    examples = examples_for(captured, batch_size)
    sizes = dynamic_sizes(captured, batch_size, LARGEST_BATCH)
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), tracing():
            program = torch.export.export(deployed_module(captured), examples, dynamic_shapes=sizes)
            for node in program.graph.nodes:
                for origin in _ORIGINS:
                    node.meta.pop(origin, None)
            # AOTInductor wants them. One stored element, seen at every position: the golden pair serves as a real example.
            program.example_inputs = (tuple(example.new_zeros(1).expand(example.shape) for example in examples), {})
            torch.export.save(program, buffer)
    except Exception as error:  # torch.export raises whatever it meets
        raise _refused(captured, ".pt2", error) from error
    return _records(buffer)


def lower_torchscript(captured: CapturedGraph, batch_size: int | None) -> dict[str, bytes]:
    """Records of a TorchScript archive: scripted, not traced, so that sizes which depend on the batch stay computed; and frozen.

    Raises:
        RequestError: TorchScript lacks an operation of the graph.
    """
    refuse_foreign(captured, "TorchScript")
    _say_deprecated()
    module = deployed_module(captured, batch_size)
    for node in module.graph.nodes:
        # TorchScript resolves overloads itself, by the types of the arguments.
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            node.target = torch.ops.aten.size if node.target is aten.sym_size.int else node.target.overloadpacket
    module.recompile()
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.freeze(torch.jit.script(module)), buffer)
    except Exception as error:
        raise _refused(captured, "TorchScript", error) from error
    return _without_process_traces(_records(buffer))


@functools.cache
def _say_deprecated() -> None:
    log.warning("PyTorch has deprecated TorchScript: prefer .pt2 (export_pt2, --pt2) unless what loads the file needs TorchScript")


def _records(buffer: io.BytesIO) -> dict[str, bytes]:
    with zipfile.ZipFile(buffer) as archive:
        return read_records(archive)


def _without_process_traces(records: dict[str, bytes]) -> dict[str, bytes]:
    """Drop the tables of source lines, and the counter that PyTorch puts into the class name of each further module in a process."""
    mangle = re.compile(rb"\.___torch_mangle_\d+")
    kept = {}
    for name, data in records.items():
        if name.endswith(".debug_pkl"):
            continue
        if name.startswith("code/") or name == "data.pkl":
            name, data = re.sub(r"/___torch_mangle_\d+\.py$", ".py", name), mangle.sub(b"", data)
        kept[name] = data
    if sum(name.startswith("code/") for name in kept) != 1:
        raise RequestError("the graph was not flattened into one class, so that its file would differ from export to export")
    return kept


def _refused(captured: CapturedGraph, format_: str, error: Exception) -> RequestError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return RequestError(f"{captured.info['name']} cannot be lowered to {format_}: {reason}")
