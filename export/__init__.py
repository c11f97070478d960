"""Files that describe and prove themselves: ONNX, TorchScript and `.pt2`.

Importing this package imports neither torch nor onnx; its names load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcnn.export.bundle import BundleReport, bundle
    from fastcnn.export.description import read_metadata
    from fastcnn.export.exporter import export_onnx, export_pt2, export_torchscript
    from fastcnn.export.onnx_lowering import lower_to_onnx
    from fastcnn.export.report import ExportReport
    from fastcnn.export.serving_request import BundleRequest
    from fastcnn.export.verification import verify_file

_HOME = {
    "BundleReport": "bundle",
    "BundleRequest": "serving_request",
    "ExportReport": "report",
    "bundle": "bundle",
    "export_onnx": "exporter",
    "export_pt2": "exporter",
    "export_torchscript": "exporter",
    "lower_to_onnx": "onnx_lowering",
    "read_metadata": "description",
    "verify_file": "verification",
}

__all__ = [
    "BundleReport",
    "BundleRequest",
    "ExportReport",
    "bundle",
    "export_onnx",
    "export_pt2",
    "export_torchscript",
    "lower_to_onnx",
    "read_metadata",
    "verify_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
