"""What a file says of itself: one JSON object under the key `fastcnn`. No dates, no machine names: the same inputs give the same bytes."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcnn import __version__
from fastcnn.export.formats import Format
from fastcnn.export.lowering import input_names
from fastcnn.export.options import ExportOptions
from fastcnn.export.preprocess import Preprocess
from fastcnn.export.schema import FORMAT_VERSION
from fastcnn.export.seal import seal
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import PassReport
from fastcnn.parity import ParityReport
from fastcnn.preprocessing import Preprocessing


@dataclass(frozen=True)
class Evidence:
    """What an export found out, for the file to state.

    Attributes:
        captured: the graph in the file.
        output_names: of the graph's outputs.
        opset: of an ONNX file, None of any other.
        preprocessing: from a picture to the model's input, of which the file may do a part itself; None where it is not known.
        weights_sha256: of the model's own weights, before any pass.
        passes: what each graph pass did.
        reports: the verdict of each runtime that the file is for.
        left_out: why it is for no other one.
        digests: of the parts of the file.
        golden: the golden pair, encoded.
        quantization: of an int8 file, how it was quantized and judged.
        mixed_precision: of a float16 file, what of it stays in float32, and why.
    """

    captured: CapturedGraph
    output_names: Sequence[str]
    opset: int | None
    preprocessing: Preprocessing | None
    weights_sha256: str
    passes: Sequence[PassReport]
    reports: Mapping[str, ParityReport]
    left_out: Mapping[str, str]
    digests: Mapping[str, str]
    golden: Mapping[str, Any]
    quantization: Mapping[str, Any] | None = None
    mixed_precision: Mapping[str, Any] | None = None


def build_metadata(options: ExportOptions, evidence: Evidence) -> dict[str, Any]:
    """The object that `read_metadata` returns. Its "preprocessing_in_file" says what the file does of "preprocessing" itself."""
    captured = evidence.captured
    info, names = captured.info, input_names(captured, evidence.output_names)
    shapes = [["batch" if size is None else size for size in node.meta["shape"]] for node in captured.output_nodes]
    if options.batch_size is not None:
        shapes = [[options.batch_size if size == "batch" else size for size in shape] for shape in shapes]
    metadata = {
        "format_version": FORMAT_VERSION,
        "format": options.format.name,
        "model": {
            "name": info["name"],
            "options": dict(info.get("options") or {}),
            "weights": info.get("weights") or "those of the module that was passed in",
            "weights_sha256": evidence.weights_sha256,
        },
        "versions": {"fastcnn": __version__, **_versions(options.format)},
        **({} if evidence.opset is None else {"opset": evidence.opset}),
        "precision": options.precision.value,
        "input": {
            "name": names[0],
            "layout": _layout(captured, options),
            "shape": [options.batch_size or "batch", *_sizes(captured)],
            "dtype": str(captured.input_dtype).removeprefix("torch."),
            "normalization": _normalization(info, evidence.preprocessing),
            "preprocessing": None if evidence.preprocessing is None else evidence.preprocessing.to_dict(),
            "preprocessing_in_file": options.preprocess.value,
        },
        **({"inputs": _inputs(captured, options, names)} if len(names) > 1 else {}),
        "outputs": [{"name": name, "shape": shape, "dtype": "float32"} for name, shape in zip(evidence.output_names, shapes, strict=True)],
        "labels": _labels(info, options, shapes[0]),
        **({} if evidence.quantization is None else {"quantization": dict(evidence.quantization)}),
        **({} if evidence.mixed_precision is None else {"mixed_precision": dict(evidence.mixed_precision)}),
        "passes": [str(report) for report in evidence.passes],
        "runtimes": list(evidence.reports),
        **({"left_out": dict(evidence.left_out)} if evidence.left_out else {}),
        "parity": {name: _figures(report, options.tolerance) for name, report in evidence.reports.items()},
        "digests": dict(evidence.digests),
        "golden": dict(evidence.golden),
    }
    return seal(metadata)


def _inputs(captured: CapturedGraph, options: ExportOptions, names: Sequence[str]) -> list[dict[str, Any]]:
    """All of several inputs, in the order of the model's arguments."""
    return [
        {
            "name": name,
            "shape": [options.batch_size or "batch", *source.meta["shape"][1:]],
            "dtype": str(source.meta["dtype"]).removeprefix("torch."),
        }
        for name, source in zip(names, captured.input_nodes, strict=True)
    ]


def _layout(captured: CapturedGraph, options: ExportOptions) -> str:
    if options.preprocess is not Preprocess.none:
        return "NHWC"
    return "NCHW" if len(captured.input_shape) == 4 else "batch first"


def _sizes(captured: CapturedGraph) -> list[int | str]:
    """The sizes of one picture; free ones, which only a picture of any size has, by name."""
    names = {1: "height", 2: "width"}
    return [names[axis] if size is None else size for axis, size in enumerate(captured.input_shape) if axis > 0]


def _normalization(info: Mapping[str, Any], preprocessing: Preprocessing | None) -> dict[str, Any] | None:
    """How pixels become input, where the model says so; what files had before they had "preprocessing"."""
    if preprocessing is not None and preprocessing.value_range != (0.0, 1.0):
        return None
    stats = info if preprocessing is None else preprocessing.to_dict()
    if not stats.get("mean") or not stats.get("std"):
        return None
    return {"rule": "(pixel / 255 - mean) / std, per channel", "mean": list(stats["mean"]), "std": list(stats["std"])}


def _labels(info: Mapping[str, Any], options: ExportOptions, shape: Sequence[int | str]) -> list[str] | None:
    if options.labels is not None:
        return list(options.labels)
    own = info.get("categories")
    return list(own) if own and len(shape) > 1 and len(own) == shape[1] else None


def _versions(format_: Format) -> dict[str, str]:
    found = {}
    for module, packages in format_.packages.items():
        for package in packages:
            try:
                found[module] = importlib.metadata.version(package)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _figures(report: ParityReport, tolerance: float | None) -> dict[str, Any]:
    """Rounded up to two digits: what can still differ from run to run lies far behind them. A `tolerance` asked for stands as it was given."""
    return {
        "relative_error": _rounded_up(report.relative_error),
        "max_abs_error": _rounded_up(report.max_abs_error),
        "tolerance": _rounded_up(report.tolerance) if tolerance is None else tolerance,
        **({} if tolerance is None else {"tolerance_rule": "asked for at the export"}),
        "top1_agreement": report.top1_agreement,
        "dtype": report.dtype,
        "batch_sizes": list(report.batch_sizes),
    }


def _rounded_up(value: float) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")
