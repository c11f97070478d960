"""The road of a file: capture, passes, lower, write beside the target, check in the file's own runtime, move into place."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.errors import RequestError
from fastcnn.export.adapting import adapt
from fastcnn.export.check import FileCheck, picture_sets, run_checks
from fastcnn.export.container import Container
from fastcnn.export.formats import ONNX, PT2, TORCHSCRIPT
from fastcnn.export.half import Surroundings, wide_layers
from fastcnn.export.lowering import default_output_names, finish
from fastcnn.export.metadata import Evidence, build_metadata
from fastcnn.export.options import (
    BATCH_SIZES,
    BatchSize,
    ExportOptions,
    Labels,
    Opset,
    parse_batch_size,
    parse_opset,
    parse_precision,
    parse_preprocess,
    read_labels,
)
from fastcnn.export.parser_rules import require_readable
from fastcnn.export.pixel_input import PixelInput, normalize_in_graph, preprocessing_in, take_pixels
from fastcnn.export.preprocess import Preprocess
from fastcnn.export.profiles import parse_profile
from fastcnn.export.quantized import QuantizedGraph, judge_file, quantize_graph
from fastcnn.export.report import ExportReport
from fastcnn.files import check_target, replacing, sha256_of_file
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import INT8_PASSES, STANDARD_PASSES, run_passes
from fastcnn.inputs import Inputs
from fastcnn.models.weights import state_dict_sha256
from fastcnn.parity import ParityReport
from fastcnn.precision import Precision
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.request import MAX_ACCURACY_DROP, MAX_ERROR, Calibration, HalfRequest, Int8Request, Limits, parse_quantize_for

log = logging.getLogger(__name__)


def export_onnx(
    model: nn.Module | CapturedGraph,
    path: str | os.PathLike[str],
    example_input: Inputs,
    *,
    opset: Opset = None,
    precision: str = "fp32",
    batch_size: BatchSize = "dynamic",
    softmax: bool = False,
    labels: Labels = None,
    force: bool = False,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    preprocess: str = "none",
    picture_size: tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    tolerance: float | None = None,
    calibration: Calibration | None = None,
    quantize_for: str = "cpu",
    portable: bool | None = None,
    max_error: float = MAX_ERROR,
    max_accuracy_drop: float = MAX_ACCURACY_DROP,
    save_ranges: str | os.PathLike[str] | None = None,
    labelled: tuple[Tensor, Tensor] | None = None,
    profile: str | None = None,
) -> ExportReport:
    """Write a model as ONNX, in standard operators only, once onnxruntime or OpenVINO, where installed, agrees with the float64 reference.

    A runtime that cannot run the file, or computes something else, is left out of the file's list of runtimes while the other is right.

    The file takes `input` [batch, ...] float32 and returns `logits` float32, whatever precision it computes in. It takes integers where the model
    does, and several inputs under the names of the model's arguments.

    Args:
        model: any classifier in evaluation mode that `torch.export` can capture, or a graph captured from one; not changed.
        example_input: [N, C, H, W], or a tuple where the model takes several; its sizes, but for N, become those of the file, and its range that of
            the pictures it is checked with.
        opset: 13 to 23, or "min", the default: the lowest of these that the graph needs, which the most runtimes read.
        precision: "fp32"; "fp16" for float16 weights and arithmetic, but where numbers would overflow or vanish: that stays in float32; "int8" for
            products of 8-bit numbers, which needs `calibration`.
        batch_size: "dynamic", or the one size that the file shall accept.
        softmax: return `probabilities` over dimension 1 instead.
        labels: names of the classes, or a text file with one a line; the model's own by default.
        force: overwrite an existing file.
        batch_sizes: the sizes at which a file with a dynamic batch is checked.
        preprocess: what the file does of the preprocessing itself. "none": it takes normalised pictures. "normalize": it takes uint8
            [batch, H, W, C] pixels of its size and normalises them. "resize": pixels of any height and width, which it also resizes and crops;
            bilinear or bicubic, by the same filter as Pillow, without rounding to whole levels in between.
        picture_size: (height, width) of the only pictures that a resizing file shall take: it then computes no sizes, which OpenCV 4.13,
            tract and OpenVINO 2023 cannot read.
        preprocessing: from a picture to the model's input, for a model that does not say so itself; stored in the file in any case.
        tolerance: bound on the relative L2 error of the file, for a network that amplifies rounding, in place of the rule of its precision
            (`fastcnn.parity`). The file states it, and `verify_file` holds it to that.
        calibration: for int8: a folder of pictures, a .npy or .npz file or an array of preprocessed ones [N, ...], of which up to 300 are observed
            and others kept apart to judge the file by; or the .json file that an earlier export wrote to `save_ranges`. For fp16, where it may be
            left out: more pictures to find the layers by that overflow float16, which stay in float32.
        quantize_for: "cpu" (uint8 activations), "tensorrt" (symmetric int8, judged in onnxruntime), or "any" (symmetric int8, judged everywhere).
        portable: keep int8 weights to 7 bits, which no CPU saturates on; by default where this CPU has no VNNI.
        max_error, max_accuracy_drop: of an int8 file on the pictures kept apart: bound on the relative L2 error, and the share that may get
            another best class. Layers that hurt most go back to float until they hold.
        save_ranges: a .json file for what the calibration found out.
        labelled: of an int8 file: (preprocessed pictures [N, ...], their classes [N]) to judge it by in place of the pictures kept apart:
            `max_accuracy_drop` then bounds what the accuracy itself drops by.
        profile: what shall read the file, a name in `fastcnn.export.profiles.PROFILES`: options at their defaults are adapted to it, with a line in
            the log for each, and the graph is held against the rules of its parser.

    Raises:
        RequestError: a wrong option, an output that cannot be written, or an operation that ONNX lacks. Nothing was written.
        CaptureError: `torch.export` cannot capture the model.
        ParityError: the file computes in no runtime what the model computes; it was removed.
    """
    known = parse_precision(precision)
    int8 = None
    if calibration is not None and known is not Precision.fp16:
        int8 = Int8Request(
            calibration=calibration,
            quantize_for=parse_quantize_for(quantize_for),
            portable=portable,
            limits=Limits(max_error, max_accuracy_drop),
            save_ranges=None if save_ranges is None else Path(save_ranges),
            labelled=labelled,
        )
    elif labelled is not None:
        raise RequestError(f"labelled pictures judge an int8 file with a calibration, and precision is {known.value}: leave them out")
    options = ExportOptions(
        format=ONNX,
        path=Path(path),
        precision=known,
        batch_size=parse_batch_size(batch_size),
        batch_sizes=tuple(batch_sizes),
        softmax=softmax,
        labels=read_labels(labels),
        force=force,
        opset=parse_opset(opset),
        preprocess=parse_preprocess(preprocess),
        picture_size=picture_size,
        preprocessing=preprocessing,
        tolerance=tolerance,
        int8=int8,
        half=_half(known, calibration),
    )
    if (row := parse_profile(profile)) is not None:
        options, changes = adapt(options, row)
        for change in changes:
            log.info("for %s: %s", row.title, change)
    return export_file(model, example_input, options)


def export_torchscript(
    model: nn.Module | CapturedGraph,
    path: str | os.PathLike[str],
    example_input: Inputs,
    *,
    precision: str = "fp32",
    batch_size: BatchSize = "dynamic",
    softmax: bool = False,
    labels: Labels = None,
    force: bool = False,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    preprocess: str = "none",
    picture_size: tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    tolerance: float | None = None,
    calibration: Calibration | None = None,
) -> ExportReport:
    """Write a model as TorchScript, which PyTorch has deprecated: prefer `export_pt2`. Arguments and errors as in `export_onnx`.

    `torch.jit.load(path)` gives a module from [N, ...] float32 to float32; it is checked in a fresh process that has PyTorch only.
    """
    known = parse_precision(precision)
    options = ExportOptions(
        format=TORCHSCRIPT,
        path=Path(path),
        precision=known,
        batch_size=parse_batch_size(batch_size),
        batch_sizes=tuple(batch_sizes),
        softmax=softmax,
        labels=read_labels(labels),
        force=force,
        preprocess=parse_preprocess(preprocess),
        picture_size=picture_size,
        preprocessing=preprocessing,
        tolerance=tolerance,
        half=_half(known, calibration),
    )
    return export_file(model, example_input, options)


def export_pt2(
    model: nn.Module | CapturedGraph,
    path: str | os.PathLike[str],
    example_input: Inputs,
    *,
    precision: str = "fp32",
    batch_size: BatchSize = "dynamic",
    softmax: bool = False,
    labels: Labels = None,
    force: bool = False,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    preprocess: str = "none",
    picture_size: tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    tolerance: float | None = None,
    calibration: Calibration | None = None,
) -> ExportReport:
    """Write a model as a `torch.export` archive. Arguments and errors as in `export_onnx`.

    `torch.export.load(path).module()` gives a module from [N, ...] float32 to float32, of up to 1024 pictures where the batch is dynamic: what
    plans memory ahead from the archive needs a bound. It is checked in a fresh process that has PyTorch only.
    """
    known = parse_precision(precision)
    options = ExportOptions(
        format=PT2,
        path=Path(path),
        precision=known,
        batch_size=parse_batch_size(batch_size),
        batch_sizes=tuple(batch_sizes),
        softmax=softmax,
        labels=read_labels(labels),
        force=force,
        preprocess=parse_preprocess(preprocess),
        picture_size=picture_size,
        preprocessing=preprocessing,
        tolerance=tolerance,
        half=_half(known, calibration),
    )
    return export_file(model, example_input, options)


def export_file(
    model: nn.Module | CapturedGraph, example_input: Inputs, options: ExportOptions, say: Callable[[str], None] = lambda stage: None
) -> ExportReport:
    """What the three functions above do with what they were given, and the command line with its own; arguments and errors as in `export_onnx`.

    `say` is told each stage as it begins.
    """
    started = time.perf_counter()
    check_target(options.path, options.force)
    say("capture")
    captured = model if isinstance(model, CapturedGraph) else capture(model, example_input)
    _check_labels(captured, options)
    _check_inputs(captured, options)
    known = preprocessing_in(captured, options)
    front = _front(options, known)
    say("passes")
    folding = captured if front is None or front.normalize else normalize_in_graph(captured, front.preprocessing)
    graph, passes = run_passes(folding, STANDARD_PASSES if options.int8 is None else INT8_PASSES)
    say(f"lower to {options.format.title}")
    made, wide, weights_sha256 = None, None, _weights_sha256(model)
    if options.int8 is not None:
        made = quantize_graph(_reference(model), graph, options, known, weights_sha256, say)
        graph, passes = made.quantized.graph, (*passes, made.quantized.report)
    if options.precision is Precision.fp16:
        wide, pictures = wide_layers(graph, options, Surroundings(example_input, front, known, weights_sha256), say)
        passes = (*passes, wide.report())
    finished = finish(graph, options.precision, options.softmax, () if wide is None else wide.nodes)
    if front is not None:
        finished = take_pixels(finished, front, options.batch_size)
    names = default_output_names(finished, "probabilities" if options.softmax else "logits")
    container = Container(options.format.name, options.format.lower(finished, names, options.batch_size, options.opset))
    if options.profile is not None:
        require_readable(container.content, options.profile, captured.info["name"])

    reference = _whole_reference(model, front, options.softmax)
    with replacing(options.path, suffix=options.format.suffix) as draft:
        container.write(draft)
        checked = (
            _check(captured.info["name"], reference, front, options, example_input, draft, say)
            if made is None
            else _judge(made, finished, reference, front, options, draft, say)
        )
        evidence = Evidence(
            captured=finished,
            output_names=names,
            opset=container.opset,
            preprocessing=known,
            weights_sha256=weights_sha256,
            passes=passes,
            reports=checked.reports,
            left_out=checked.left_out,
            digests=container.digests(),
            golden=checked.golden,
            quantization=checked.quantization,
            mixed_precision=None if wide is None else wide.description(pictures),
        )
        for name, reason in checked.left_out.items():
            log.warning("%s is not for %s: %s", options.path, name, reason)
        metadata = build_metadata(options, evidence)
        container.write(draft, metadata)
    return ExportReport(
        path=options.path,
        format=options.format.name,
        bytes=options.path.stat().st_size,
        sha256=sha256_of_file(options.path),
        seconds=time.perf_counter() - started,
        parity=checked.whole(),
        passes=passes,
        metadata=metadata,
    )


def _half(precision: Precision, calibration: Calibration | None) -> HalfRequest | None:
    """What a calibration is for in a float16 file. Raises RequestError for a precision without any use for one in this format."""
    if calibration is None or precision is Precision.int8:
        return None
    return HalfRequest(calibration=calibration)


@dataclass(frozen=True)
class _Checked:
    """What the runtimes made of the file, those left out and why, and what the file keeps of it; of an int8 one also how it was quantized."""

    reports: Mapping[str, ParityReport]
    left_out: Mapping[str, str]
    golden: Mapping[str, Any]
    dtype: str
    notes: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = None

    def whole(self) -> ParityReport:
        return ParityReport.of([row for runtime in self.reports.values() for row in runtime.rows], self.dtype, notes=self.notes)


def _check(
    name: str, reference: nn.Module, front: PixelInput | None, options: ExportOptions, example: Inputs, draft: Path, say: Callable[[str], None]
) -> _Checked:
    """Hold the file at `draft` against the reference, in its own precision. Raises ParityError."""
    say("reference in float64")
    checks = [FileCheck.prepare(reference, pictures) for pictures in picture_sets(example, front, options)]
    for check in checks:
        check.require_finite(name)
    expected = checks[0].expected
    of_runtimes = run_checks(checks, draft, say)
    checked = _Checked(of_runtimes.reports, of_runtimes.left_out, {}, expected.dtype, expected.notes)
    checked.whole().require(f"{options.path} was not written: the {options.format.name} file of {name}")
    return replace(checked, golden=checks[0].golden())


def _judge(
    made: QuantizedGraph,
    finished: CapturedGraph,
    reference: nn.Module,
    front: PixelInput | None,
    options: ExportOptions,
    draft: Path,
    say: Callable[[str], None],
) -> _Checked:
    """Judge the int8 file at `draft` by its accuracy. Raises ParityError."""
    judgements, golden = judge_file(made, finished, reference, front, options, draft, say)
    reports = {judgement.runtime: ParityReport.of([judgement.row(made.request.limits)], Precision.int8.value) for judgement in judgements}
    return _Checked(reports, {}, golden, Precision.int8.value, quantization=made.description(judgements))


def _front(options: ExportOptions, preprocessing: Preprocessing | None) -> PixelInput | None:
    """What the file does before the model, None for nothing.

    In float32 the normalisation is left to the passes. In float16 it stays in front of the model, in float32: folded, its scale of 1/255 would
    push small weights out of float16's range.
    """
    if options.preprocess is Preprocess.none:
        return None
    assert preprocessing is not None
    resize, normalize = options.preprocess is Preprocess.resize, options.precision is not Precision.fp32
    cast_first = options.profile is not None and options.profile.cast_first
    return PixelInput(preprocessing, resize=resize, normalize=normalize, picture_size=options.picture_size, cast_first=cast_first)


def _check_inputs(captured: CapturedGraph, options: ExportOptions) -> None:
    """What stands in front of a model or is observed for it, is for one floating-point input."""
    count, takes = len(captured.input_nodes), str(captured.input_dtype).removeprefix("torch.")
    if count == 1 and captured.input_dtype.is_floating_point:
        return
    what = f"takes {count} inputs" if count > 1 else f"takes {takes} as it is"
    if options.preprocess is not Preprocess.none:
        raise RequestError(f"{captured.info['name']} {what}: leave preprocess={options.preprocess.value!r} (--preprocess) out")
    if options.int8 is not None:
        raise RequestError(f"{captured.info['name']} {what}: int8 is for models of one floating-point input")
    if options.half is not None:
        raise RequestError(f"{captured.info['name']} {what}: pictures of a calibration are for models of one floating-point input")


def _check_labels(captured: CapturedGraph, options: ExportOptions) -> None:
    if options.labels is None:
        return
    shape = captured.output_nodes[0].meta["shape"]
    classes = shape[1] if len(shape) > 1 else None
    if len(options.labels) != classes:
        raise RequestError(f"{len(options.labels)} labels do not fit {captured.info['name']}, which has {classes} classes")


def _whole_reference(model: nn.Module | CapturedGraph, front: PixelInput | None, softmax: bool) -> nn.Module:
    """What the file is held against: the model, behind all that the file does to pixels and in front of its softmax."""
    reference = _Probabilities(_reference(model)) if softmax else _reference(model)
    if front is None:
        return reference
    return nn.Sequential(PixelInput(front.preprocessing, resize=front.resize, normalize=True), reference)


def _reference(model: nn.Module | CapturedGraph) -> nn.Module:
    """The model itself; of a captured graph, the graph before any pass."""
    if isinstance(model, nn.Module):
        return model
    graph = model.copy()
    graph.cast_constants(torch.float64)
    return graph.module


def _weights_sha256(model: nn.Module | CapturedGraph) -> str:
    """Of the state dict; of a captured graph, of the constants that it reads."""
    return state_dict_sha256(model.state_dict() if isinstance(model, nn.Module) else model.constants())


class _Probabilities(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """[N, K, ...], of a model that may return it inside a container of one."""
        (logits,) = torch.utils._pytree.tree_leaves(self.model(*inputs))
        return torch.softmax(logits, dim=1)
