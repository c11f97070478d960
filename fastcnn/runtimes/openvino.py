"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import io
import re
import sys
from collections.abc import Callable
from typing import Any

from fastcnn.errors import BackendError


def import_openvino() -> Any:
    """The `openvino` package, without the report that its import sends to an analytics host.

    OpenVINO does without the `openvino_telemetry` package where that is not installed; for the time of the first import it looks so. A program that
    imported `openvino` before keeps what it has, and a later import of `openvino_telemetry` gives the true package.

    Raises:
        BackendError: it is not installed.
    """
    reporting = "openvino_telemetry"
    hidden = "openvino" not in sys.modules and reporting not in sys.modules
    if hidden:
        sys.modules[reporting] = None  # type: ignore[assignment] # how Python marks a module that cannot be imported
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"openvino cannot be imported: {error} (pip install 'fastcnn[openvino]')") from error
    finally:
        if hidden:
            sys.modules.pop(reporting, None)
    return openvino


# How the runtime says which operation it means, and what was wrong with it.
_OPERATION = (
    r"While validating ONNX node '<Node\((?P<kind>\w+)\): (?P<name>[^>]*)>': (?P<why>.*?)(?= Summary: | -- |$)",
    r"While validating node '(?:opset\d+::)?(?P<kind>\w+) (?P<name>\S+) .*?' with friendly_name '[^']*': (?P<why>.*)",
    r"No conversion rule found for operations?: (?P<kind>[\w:]+)()",
    r"OpenVINO does not support the following ONNX operations: (?P<kind>[\w:.]+)()",
    r"\[CPU\] (?P<kind>\w+) node with name '(?P<name>[^']*)' (?P<why>.*)",
)
_PLACE = re.compile(r"(Exception from|Check '.*?' failed at) \S+?:\d+:? ?")


def reason(error: Exception) -> str:
    """What the runtime complains of, in one line that begins with the operation where the runtime names it."""
    line = " ".join(str(error).split())
    for pattern in _OPERATION:
        found = re.search(pattern, line)
        if found:
            groups = found.groupdict()
            name = f" ({groups['name']})" if groups.get("name") and groups["name"] != groups["kind"] else ""
            return f"operation {groups['kind']}{name}: {_PLACE.sub('', groups.get('why') or 'it is not supported').strip()}"
    return _PLACE.sub("", line).strip() or type(error).__name__


def compile_model(model: bytes, *, precision: str = "f32", threads: int | None = None, batch_size: int | None = None) -> Any:
    """An `openvino.CompiledModel` for the CPU.

    Args:
        model: the bytes of an ONNX model.
        precision: "f32" or "bf16", OpenVINO's names. It lowers the precision by itself where the CPU has fast bfloat16, unless it is told one.
        threads: the runtime's own choice by default. All of them work on one call at a time, as in PyTorch, however many cores and sockets there are.
        batch_size: the only one that it will take; any by default.

    Raises:
        BackendError: the runtime is not installed, refuses the model, or would compute in another precision.
    """
    openvino = import_openvino()
    core = openvino.Core()
    options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        network = core.read_model(io.BytesIO(model))
        if batch_size is not None:
            network.reshape({position: [batch_size, *list(port.partial_shape)[1:]] for position, port in enumerate(network.inputs)})
        compiled = core.compile_model(network, "CPU", options)
    except RuntimeError as error:
        why = reason(error)
        if why == type(error).__name__:  # it gives the place in its sources, or nothing
            cut = functools.partial(_is_compiled, core, options=options)
            why = f"operation {found}: it says no more" if (found := _first_refused(model, cut)) else why
        raise BackendError(f"OpenVINO cannot compile the model: {why}") from error
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if chosen != precision:
        raise BackendError(f"OpenVINO would compute in {chosen} on this CPU, {precision} was asked for")
    return compiled


def _is_compiled(core: Any, model: bytes, options: dict[str, object]) -> bool:
    try:
        core.compile_model(core.read_model(io.BytesIO(model)), "CPU", options)
    except RuntimeError:
        return False
    return True


def _first_refused(model: bytes, is_compiled: Callable[[bytes], bool]) -> str | None:
    """Of a model that the runtime refuses without a word, the operation that the shortest refused beginning ends with; None where there is none.

    The network is cut behind a node again and again, about the logarithm of their number.
    """
    import onnx

    whole = onnx.load_from_string(model)
    nodes = list(whole.graph.node)

    def beginning_compiles(count: int) -> bool:
        cut = onnx.ModelProto()
        cut.CopyFrom(whole)
        del cut.graph.node[count:], cut.graph.output[:]
        cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in nodes[count - 1].output if name)
        return is_compiled(cut.SerializeToString())

    compiled, refused = 0, len(nodes)
    while refused - compiled > 1:
        middle = (compiled + refused) // 2
        compiled, refused = (middle, refused) if beginning_compiles(middle) else (compiled, middle)
    if refused == len(nodes) and beginning_compiles(refused):
        return None
    last = nodes[refused - 1]
    return last.op_type + (f" ({last.name})" if last.name and last.name != last.op_type else "")
