"""The kinds of file: one row each, with all that differs between them. Importing this module imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcnn.graph.ir import CapturedGraph


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: in Python, in the metadata and, behind two dashes, on the command line.
        title: as messages call it.
        suffix: of its files; the command line also tells the kind by it.
        lower: (graph as the file shall hold it, names of its outputs, the one batch that it accepts or None for any, opset or
            None for the lowest that will do) → what a `Container` of this format holds.
        packages: what takes part, by module; of several packages for one module, the one that is installed counts.
        has_opset: it is written for a version of an operator set, which may be asked for.
        has_int8: there are runtimes that multiply in 8 bits what such a file says.
    """

    name: str
    title: str
    suffix: str
    lower: Callable[[CapturedGraph, Sequence[str], int | None, int | None], bytes | Mapping[str, bytes]]
    packages: Mapping[str, tuple[str, ...]]
    has_opset: bool = False
    has_int8: bool = False


def _lower_onnx(captured: CapturedGraph, names: Sequence[str], batch_size: int | None, opset: int | None) -> bytes:
    import onnx

    from fastcnn.export.onnx_lowering import lower_to_onnx

    model = lower_to_onnx(captured, opset=opset, batch_size=batch_size, output_names=names)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _lower_torchscript(captured: CapturedGraph, names: Sequence[str], batch_size: int | None, opset: int | None) -> Mapping[str, bytes]:
    from fastcnn.export.torch_archive import lower_torchscript

    return lower_torchscript(captured, batch_size)


def _lower_pt2(captured: CapturedGraph, names: Sequence[str], batch_size: int | None, opset: int | None) -> Mapping[str, bytes]:
    from fastcnn.export.torch_archive import lower_pt2

    return lower_pt2(captured, batch_size)


_TORCH_PACKAGES = {"torch": ("torch",)}
_ONNX_PACKAGES = {
    "torch": ("torch",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
}

ONNX = Format("onnx", "ONNX", ".onnx", _lower_onnx, _ONNX_PACKAGES, has_opset=True, has_int8=True)
TORCHSCRIPT = Format("torchscript", "TorchScript", ".pt", _lower_torchscript, _TORCH_PACKAGES)
PT2 = Format("pt2", ".pt2", ".pt2", _lower_pt2, _TORCH_PACKAGES)

FORMATS = {row.name: row for row in (ONNX, TORCHSCRIPT, PT2)}
