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
from fastcnn.export.preprocess import PixelInput, normalize_in_graph, preprocessing_in, take_pixels
from fastcnn.export.report import ExportReport
from fastcnn.export.request import Request, check_request
from fastcnn.export.runtimes import runtimes_for
from fastcnn.export.torch_archive import lower_pt2, lower_torchscript
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.models.weights import state_dict_sha256
from fastcnn.parity import Expected, Outputs, ParityReport, bound, compare, expect, make_pictures
from fastcnn.preprocessing import Preprocessing

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
    preprocess: str = "none",
    preprocessing: Preprocessing | None = None,
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
        preprocess: what the file does of the preprocessing itself. "none": it takes normalised pictures. "normalize": it takes uint8
            [batch, H, W, C] pixels of its size and normalises them. "resize": pixels of any height and width, which it also resizes and crops;
            bilinear or bicubic, by the same filter as Pillow, without rounding to whole levels in between.
        preprocessing: from a picture to the model's input, for a model that does not say so itself; stored in the file in any case.

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
    preprocess: str = "none",
    preprocessing: Preprocessing | None = None,
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
    preprocess: str = "none",
    preprocessing: Preprocessing | None = None,
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
    known = preprocessing_in(captured, request)
    front = _front(request, known)
    graph, passes = run_passes(captured if front is None or front.normalize else normalize_in_graph(captured, front.preprocessing), STANDARD_PASSES)
    finished = finish(graph, request.precision, request.softmax)
    if front is not None:
        finished = take_pixels(finished, front, request.batch_size)
    names = default_output_names(finished, "probabilities" if request.softmax else "logits")
    container = _lower(format_, finished, request, names)

    parts = [_reference(model)] + ([_Softmax()] if request.softmax else [])
    if front is not None:
        parts.insert(0, PixelInput(front.preprocessing, resize=front.resize, normalize=True))
    reference = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    checks = [_Check.prepare(reference, *pictures) for pictures in _picture_sets(example_input, front, request)]
    with _temporary(request.path, _SUFFIX[format_]) as draft:
        container.write(draft)
        reports = _run_checks(checks, format_, draft)
        report = ParityReport.of([row for runtime in reports.values() for row in runtime.rows], checks[0].expected.dtype)
        report.require(f"{request.path} was not written: the {format_} file of {captured.info['name']}")
        metadata = build_metadata(
            format_,
            request,
            captured=finished,
            names=names,
            preprocessing=known,
            weights_sha256=_weights_sha256(model),
            passes=passes,
            reports=reports,
            digests=container.digests(),
            golden=checks[0].golden(),
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


def _front(request: Request, preprocessing: Preprocessing | None) -> PixelInput | None:
    """What the file does before the model, None for nothing.

    In float32 the normalisation is left to the passes. In float16 it stays in front of the model, in float32: folded, its scale of 1/255 would
    push small weights out of float16's range.
    """
    if request.preprocess == "none":
        return None
    assert preprocessing is not None
    return PixelInput(preprocessing, resize=request.preprocess == "resize", normalize=request.precision != "fp32")


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


def _picture_sets(example: Tensor, front: PixelInput | None, request: Request) -> list[tuple[golden.Pictures, Tensor, Request]]:
    """What a file is checked with: the golden pair, further pictures, and at which batches; a file for any size at more sizes than one."""
    example = example.detach().to("cpu", torch.float32)
    count = max(golden.COUNT, *(stop for _, stop in request.slices)) - golden.COUNT
    if front is None:
        finite = example[example.isfinite()]
        pair = golden.Pictures.spanning(example.shape[1:], *((float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)))
        return [(pair, make_pictures(example[:2], count), request)]
    sets = []
    for height, width in front.sizes_to_check():
        pair = golden.Pictures.of_pixels(height, width, front.preprocessing.channel_count)
        levels = torch.from_numpy(pair.values()).permute(0, 3, 1, 2).float()
        noise = make_pictures(levels, golden.COUNT + count)[golden.COUNT :]
        sets.append((pair, noise.round().to(torch.uint8).permute(0, 2, 3, 1), request))
        request = replace(request, batch_sizes=(1,))
    return sets


def _run_checks(checks: Sequence[_Check], format_: str, path: Path) -> dict[str, ParityReport]:
    """Each runtime's report on the file."""
    batches = [batch for check in checks for batch in check.batches()]
    reports = {}
    for name, run in runtimes_for(format_).items():
        results = iter(run(path, batches))
        rows = [row for check in checks for row in check.compare([next(results) for _ in check.batches()], name).rows]
        reports[name] = ParityReport.of(rows, checks[0].expected.dtype)
    return reports


@dataclass(frozen=True)
class _Check:
    """The pictures that a file is checked with and what the reference makes of them; the golden pair comes first."""

    request: Request
    reference: nn.Module
    pair: golden.Pictures
    pictures: Tensor
    expected: Expected

    @classmethod
    def prepare(cls, reference: nn.Module, pair: golden.Pictures, others: Tensor, request: Request) -> _Check:
        """Runs the reference on the golden pair and on `others` [N, ...]."""
        pictures = torch.cat([torch.from_numpy(pair.values()), others])
        expected = expect(reference, pictures, [*request.slices, (0, golden.COUNT)], dtype=DTYPES[request.precision])
        return cls(request, reference, pair, pictures, expected)

    def batches(self) -> list[np.ndarray]:
        return [np.ascontiguousarray(self.pictures[start:stop].numpy()) for start, stop in self.expected.slices[:-1]]

    def compare(self, results: Sequence[Outputs], runtime: str) -> ParityReport:
        """The report on what a runtime returned for `batches`."""
        expected = self.expected
        assert expected.eager is not None
        wanted = replace(expected, slices=expected.slices[:-1], reference=expected.reference[:-1], eager=expected.eager[:-1])
        return compare(results, wanted, runtime=runtime)

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
        found = golden.Golden(self.pair.values(), tuple(map(tuple, batches)), tuple(outputs), tolerance, self.expected.dtype)
        return golden.encode(self.pair, found)

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
