"""What an ONNX file takes, gives and holds, whoever wrote it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcnn.export.description import read_any


@dataclass(frozen=True)
class Value:
    """An input or an output; None in the shape is a free size."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file from outside.

    Attributes:
        operators: how many nodes there are of each, the most frequent first, those of subgraphs not counted.
        opsets: domain → version.
        parameters: values in all initializers.
        metadata: what fastcnn wrote into it, without the golden pair; None where others made it.
    """

    path: Path
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: Mapping[str, int]
    opsets: Mapping[str, int]
    parameters: int
    producer: str
    metadata: Mapping[str, Any] | None


def inspect_onnx(path: Path) -> OnnxFile:
    """Reads the file without its external weights. Raises RequestError where there is none, FileFormatError for anything but ONNX."""
    import onnx

    _, metadata = read_any(path)
    model = onnx.load(path, load_external_data=False)
    held = {initializer.name for initializer in model.graph.initializer}
    return OnnxFile(
        path,
        tuple(_value(value) for value in model.graph.input if value.name not in held),  # older files list initializers as inputs too
        tuple(_value(value) for value in model.graph.output),
        dict(Counter(node.op_type for node in model.graph.node).most_common()),
        {entry.domain: entry.version for entry in model.opset_import},
        sum(math.prod(initializer.dims) for initializer in model.graph.initializer),
        " ".join(part for part in (model.producer_name, model.producer_version) if part) or "an unnamed tool",
        None if metadata is None else {key: value for key, value in metadata.items() if key != "golden"},
    )


def _value(value: Any) -> Value:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return Value(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
