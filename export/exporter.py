"""The road of a file: capture, passes, lower, write beside the target, check in the file's own runtime, move into place."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from fastcnn.errors import RequestError
from fastcnn.export import golden
from fastcnn.export.container import Container, serialize, sha256_of_file
from fastcnn.export.lowering import DTYPES, default_output_names, finish
from fastcnn.export.metadata import build_metadata
from fastcnn.export.onnx_lowering import lower_to_onnx
from fastcnn.export.report import ExportReport
from fastcnn.export.request import Request, check_request
from fastcnn.export.runtimes import runtimes_for
from fastcnn.export.torch_archive import lower_pt2, lower_torchscript
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.models.weights import state_dict_sha256
from fastcnn.parity import Expected, Outputs, ParityReport, bound, compare, expect, make_pictures

Labels = str | os.PathLike[str] | Sequence[str] | None
BatchSize = int | Literal["dynamic"]

_SUFFIX = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}


def export_onnx(
    model: nn.Module | CapturedGraph,
    path: str | os.PathLike[str],
    example_input: Tensor,
    *,
    opset: int | None = None,
    precision: str = "fp32",
    batch_size: BatchSize = "dynamic",
    softmax: bool = False,
    labels: Labels = None,
    force: bool = False,
    batch_sizes: Sequence[int] = (1, 2, 5),
) -> ExportReport:
    """Write a model as ONNX, in standard operators only, once onnxruntime (and OpenVINO where installed) agree with the float64 reference.

    The file takes `input` [batch, ...] float32 and returns `logits` float32, whatever precision it computes in.

    Args:
        model: any classifier in evaluation mode that `torch.export` can capture, or a graph captured from one; not changed.
        example_input: [N, C, H, W]; its sizes, but for N, become those of the file, and its range that of the pictures it is checked with.
        opset: 18 to 23; 20 by default.
        precision: "fp32", or "fp16" for float16 weights and arithmetic.
        batch_size: "dynamic", or the one size that the file shall accept.
        softmax: return `probabilities` over dimension 1 instead.
        labels: names of the classes, or a text file with one a line; the model's own by default.
        force: overwrite an existing file.
        batch_sizes: the sizes at which a file with a dynamic batch is checked.

    Raises:
        RequestError: a wrong option, an output that cannot be written, or an operation that ONNX lacks. Nothing was written.
        CaptureError: `torch.export` cannot capture the model.
        ParityError: the file does not compute what the model computes; it was removed.
    """
    options = locals()
    return _export("onnx", **options)


def export_torchscript(
    model: nn.Module | CapturedGraph,
    path: str | os.PathLike[str],
    example_input: Tensor,
    *,
    precision: str = "fp32",
    batch_size: BatchSize = "dynamic",
    softmax: bool = False,
    labels: Labels = None,
    force: bool = False,
    batch_sizes: Sequence[int] = (1, 2, 5),
) -> ExportReport:
    """Write a model as TorchScript, which PyTorch has deprecated: prefer `export_pt2`. Arguments and errors as in `export_onnx`.

    `torch.jit.load(path)` gives a module from [N, ...] float32 to float32; it is checked in a fresh process that has PyTorch only.
    """
    options = locals()
    return _export("torchscript", **options)


def export_pt2(
    model: nn.Module | CapturedGraph,
    path: str | os.PathLike[str],
    example_input: Tensor,
    *,
    precision: str = "fp32",
    batch_size: BatchSize = "dynamic",
    softmax: bool = False,
    labels: Labels = None,
    force: bool = False,
    batch_sizes: Sequence[int] = (1, 2, 5),
) -> ExportReport:
    """Write a model as a `torch.export` archive. Arguments and errors as in `export_onnx`.

    `torch.export.load(path).module()` gives a module from [N, ...] float32 to float32; it is checked in a fresh process that has PyTorch only.
    """
    options = locals()
    return _export("pt2", **options)


def _export(format_: str, model: nn.Module | CapturedGraph, path: str | os.PathLike[str], example_input: Tensor, **options: Any) -> ExportReport:
    started = time.perf_counter()
    request = check_request(path, **options)
    captured = model if isinstance(model, CapturedGraph) else capture(model, example_input)
    _check_labels(captured, request)
    passed, passes = run_passes(captured, STANDARD_PASSES)
    finished = finish(passed, request.precision, request.softmax)
    names = default_output_names(finished, "probabilities" if request.softmax else "logits")
    container = _lower(format_, finished, request, names)

    reference = _reference(model)
    example = example_input.detach().to("cpu", torch.float32)
    check = _Check.prepare(nn.Sequential(reference, _Softmax()) if request.softmax else reference, example, request)
    with _temporary(request.path, _SUFFIX[format_]) as draft:
        container.write(draft)
        reports = check.run(format_, draft)
        report = ParityReport.of([row for runtime in reports.values() for row in runtime.rows], check.expected.dtype)
        report.require(f"{request.path} was not written: the {format_} file of {captured.info['name']}")
        metadata = build_metadata(
            format_,
            request,
            captured=finished,
            names=names,
            weights_sha256=_weights_sha256(model),
            passes=passes,
            reports=reports,
            digests=container.digests(),
            golden=check.golden(),
        )
        container.write(draft, metadata)
        os.replace(draft, request.path)
    return ExportReport(
        path=request.path,
        format=format_,
        bytes=request.path.stat().st_size,
        sha256=sha256_of_file(request.path),
        seconds=time.perf_counter() - started,
        parity=report,
        passes=passes,
        metadata=metadata,
    )


def _lower(format_: str, captured: CapturedGraph, request: Request, names: Sequence[str]) -> Container:
    if format_ == "onnx":
        model = lower_to_onnx(captured, opset=request.opset, batch_size=request.batch_size, output_names=names)
        onnx.checker.check_model(model, full_check=True)
        return Container("onnx", serialize(model))
    lower = {"torchscript": lower_torchscript, "pt2": lower_pt2}[format_]
    return Container(format_, lower(captured, request.batch_size))


def _check_labels(captured: CapturedGraph, request: Request) -> None:
    if request.labels is None:
        return
    shape = captured.output_nodes[0].meta["shape"]
    classes = shape[1] if len(shape) > 1 else None
    if len(request.labels) != classes:
        raise RequestError(f"{len(request.labels)} labels do not fit {captured.info['name']}, which has {classes} classes")


def _reference(model: nn.Module | CapturedGraph) -> nn.Module:
    """What the file is held against: the model itself; of a captured graph, the graph before any pass."""
    if isinstance(model, nn.Module):
        return model
    graph = model.copy()
    graph.cast_constants(torch.float64)
    return graph.module


def _weights_sha256(model: nn.Module | CapturedGraph) -> str:
    """Of the state dict; of a captured graph, of the constants that it reads."""
    return state_dict_sha256(model.state_dict() if isinstance(model, nn.Module) else model.constants())


class _Softmax(nn.Module):
    def forward(self, outputs: Any) -> Tensor:
        """outputs: [N, K, ...], possibly inside a container of one."""
        (logits,) = torch.utils._pytree.tree_leaves(outputs)
        return torch.softmax(logits, dim=1)


@dataclass(frozen=True)
class _Check:
    """The pictures that a file is checked with and what the reference makes of them; the golden pair comes first."""

    request: Request
    reference: nn.Module
    pictures: Tensor
    levels: np.ndarray
    scale: float
    offset: float
    expected: Expected

    @classmethod
    def prepare(cls, reference: nn.Module, example: Tensor, request: Request) -> _Check:
        """Runs the reference. `example` [N, ...] float32 gives range and shape, and up to two pictures."""
        finite = example[example.isfinite()]
        scale, offset = golden.scale_for(float(finite.min()), float(finite.max())) if finite.numel() else golden.scale_for(0, 0)
        levels = golden.golden_levels(example.shape[1:])
        pair = torch.from_numpy(golden.to_values(levels, scale, offset))
        total = max(golden.COUNT, *(stop for _, stop in request.slices))
        pictures = torch.cat([pair, make_pictures(example[:2], total - golden.COUNT)])
        expected = expect(reference, pictures, [*request.slices, (0, golden.COUNT)], dtype=DTYPES[request.precision])
        return cls(request, reference, pictures, levels, scale, offset, expected)

    def run(self, format_: str, path: Path) -> dict[str, ParityReport]:
        """Each runtime's report on the file."""
        expected = self.expected
        assert expected.eager is not None
        wanted = replace(expected, slices=expected.slices[:-1], reference=expected.reference[:-1], eager=expected.eager[:-1])
        batches = [np.ascontiguousarray(self.pictures[start:stop].numpy()) for start, stop in wanted.slices]
        return {name: compare(run(path, batches), wanted, runtime=name) for name, run in runtimes_for(format_).items()}

    def golden(self) -> dict[str, Any]:
        """The golden pair and what the reference says of it, for the file."""
        batches = golden.batches_for(self.request.batch_size)
        precise, eager = self._golden_outputs(batches)
        pairs = [both for truths, natives in zip(precise, eager, strict=True) for both in zip(truths, natives, strict=True)]
        tolerance = max(bound(self.expected.dtype, truth, native) for truth, native in pairs)
        # NaN and infinities are eager PyTorch's.
        outputs = [
            [np.where(np.isfinite(native), truth, native) for truth, native in zip(truths, natives, strict=True)]
            for truths, natives in zip(precise, eager, strict=True)
        ]
        pair = golden.Golden(self.pictures[: golden.COUNT].numpy(), tuple(map(tuple, batches)), tuple(outputs), tolerance, self.expected.dtype)
        return golden.encode(self.levels, self.scale, self.offset, pair)

    def _golden_outputs(self, batches: list[list[int]]) -> tuple[list[Outputs], list[Outputs]]:
        """(float64, eager) first rows of each batch."""
        expected = self.expected
        assert expected.eager is not None
        if expected.independent:
            return tuple([[output[: len(batch)] for output in run] for batch in batches] for run in (expected.reference[-1], expected.eager[-1]))  # type: ignore[return-value]
        precise, eager = [], []
        for batch in batches:
            alone = expect(self.reference, self.pictures[batch], [(0, len(batch))], dtype=DTYPES[self.request.precision])
            assert alone.eager is not None
            precise.append(golden.first_rows(alone.reference[0], batch))
            eager.append(golden.first_rows(alone.eager[0], batch))
        return precise, eager


@contextmanager
def _temporary(target: Path, suffix: str) -> Iterator[Path]:
    """A path beside `target` to write to; whatever happens, nothing is left there."""
    draft = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{suffix}")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)
