"""An int8 file: calibrate, quantize, judge the file in every runtime that will run it, and keep pictures in it to judge it by again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcnn.errors import ParityError, RequestError
from fastcnn.export import golden
from fastcnn.export.options import ExportOptions
from fastcnn.export.pixel_input import PixelInput, scale_and_shift
from fastcnn.export.runtimes import runtimes_for
from fastcnn.graph.ir import CapturedGraph
from fastcnn.parity import Expected, Outputs, ParityReport, expect
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.build import Quantized, build, simulate
from fastcnn.quantization.gate import HeldOut, Judgement, allowed_in_a_runtime, joined, judge
from fastcnn.quantization.quantize import round_weights
from fastcnn.quantization.ranges import Levels, Ranges, find_ranges
from fastcnn.quantization.request import Int8Request, Limits, QuantizeFor
from fastcnn.quantization.scheme import Scheme, has_vnni, instruction_set
from fastcnn.quantization.sensitivity import PICTURES, sensitivities

# Of the pictures to judge by, those that stay in the file: as many levels as this share of the float weights has bytes, or a few small pictures'.
_SHARE_OF_WEIGHTS, _SMALL = 0.005, 16384
_FEWEST, _MOST = 3, 32
# Batches that a file with a dynamic batch is judged in, after those of the options.
_USUAL_BATCH = 8


@dataclass(frozen=True)
class QuantizedGraph:
    """What is to become a file, and what it will be judged by.

    Attributes:
        quantized: the graph, and how far it is from the reference in eager PyTorch.
        levels: the pictures to judge by: those that the calibration kept apart, or labelled ones.
        held_out: the same, preprocessed, with their labels if there are any; repeated to fill the last batch.
        slices: the batches.
        graph: what was quantized, and `scheme` how.
    """

    request: Int8Request
    ranges: Ranges
    quantized: Quantized
    levels: Levels
    held_out: HeldOut
    slices: tuple[tuple[int, int], ...]
    graph: CapturedGraph
    scheme: Scheme

    @property
    def portable(self) -> bool:
        """Weights have 7 bits."""
        return self.scheme.weight_bits < 8

    def worst(self) -> str:
        """The layers that hurt most, with what rounding each alone does to the output."""
        rows = self.quantized.sensitivity
        if not rows:
            weights = round_weights(self.graph, self.scheme)
            rows = tuple(sensitivities(self.graph, self.ranges.of(self.scheme), self.scheme, weights, self.held_out.pictures[:PICTURES]))
        return ", ".join(f"{row.layer} ({row.square**0.5:.2g})" for row in rows[:3])

    def description(self, judgements: Sequence[Judgement]) -> dict[str, Any]:
        """What the file says of its quantization."""
        limits = self.request.limits
        return {
            "for": self.request.quantize_for.value,
            "weight_bits": 7 if self.portable else 8,
            "instruction_set": instruction_set(),
            "calibration": {"source": self.ranges.source, "samples": self.ranges.samples, "skipped": self.ranges.skipped},
            "layers": self.quantized.layers,
            "float_layers": list(self.quantized.float_layers),
            "limits": {"max_error": limits.max_error, "max_accuracy_drop": limits.max_accuracy_drop},
            "held_out": len(self.levels.levels),
            **({} if self.request.labelled is None else {"labels": self.request.labels_from}),
            "gate": {judgement.runtime: judgement.figures() for judgement in judgements},
            **({"sensitivity": [row.to_dict() for row in self.quantized.sensitivity]} if self.request.sensitivity else {}),
        }


def quantize_graph(
    model: nn.Module,
    graph: CapturedGraph,
    options: ExportOptions,
    preprocessing: Preprocessing | None,
    weights_sha256: str,
    say: Callable[[str], None],
) -> QuantizedGraph:
    """Calibrate `graph`, which the passes went over, and round what the limits allow.

    Args:
        model: what the graph was captured from, for the answers in float64.
        preprocessing: from a picture to the input of `graph`.

    Raises:
        RequestError: the calibration cannot serve.
        ParityError: the limits do not hold, whatever goes back to float.
    """
    request = options.int8
    assert request is not None
    ranges = find_ranges(request, graph, preprocessing, weights_sha256, say)
    levels, labels = ranges.held_out, None
    if request.labelled is not None:
        levels, labels = Levels.of(request.labelled[0]), request.labelled[1]
    order, slices = _batched(len(levels.levels), options)
    held_out = HeldOut(levels.values()[order], None if labels is None else labels[order].numpy())
    say("reference in float64")
    expected = expect(model, held_out.pictures, slices, dtype=torch.float32)
    _check_labels(expected.reference[0], held_out.labels, request.labels_from, graph.info["name"])
    scheme = Scheme.of(request.quantize_for, portable=request.portable)
    quantized = build(graph, ranges, scheme, request.limits, expected, held_out, table=request.sensitivity, say=say)
    return QuantizedGraph(request, ranges, quantized, levels, held_out, slices, graph, scheme)


def _check_labels(first: Outputs, labels: NDArray[np.int64] | None, source: str, name: str) -> None:
    """Raises RequestError where the first output of the reference is no classes for these labels."""
    if labels is None:
        return
    shape = first[0].shape
    if len(shape) != 2:
        raise RequestError(f"{name} gives no classes [N, K] but {list(shape)}: the labels of {source} say nothing of it; leave them out")
    if not 0 <= int(labels.min()) <= int(labels.max()) < shape[1]:
        raise RequestError(f"{name} has {shape[1]} classes, and {source} has labels up to {int(labels.max())}: they do not belong together")


def _batched(count: int, options: ExportOptions) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """The numbers of the pictures, the first ones again at the end where a fixed batch wants more, and their batches."""
    sizes = [options.batch_size] if options.batch_size is not None else [*options.batch_sizes, _USUAL_BATCH]
    slices: list[tuple[int, int]] = []
    while not slices or slices[-1][1] < count:
        start = slices[-1][1] if slices else 0
        slices.append((start, start + sizes[min(len(slices), len(sizes) - 1)]))
    if options.batch_size is None:  # the last batch takes what is left
        slices = [(start, min(stop, count)) for start, stop in slices]
    return torch.arange(slices[-1][1]) % count, tuple(slices)


def judge_file(
    made: QuantizedGraph,
    finished: CapturedGraph,
    reference: nn.Module,
    front: PixelInput | None,
    options: ExportOptions,
    draft: Path,
    say: Callable[[str], None],
) -> tuple[list[Judgement], dict[str, Any]]:
    """The figures of each runtime on the file at `draft`, and pictures with the reference's answers for the file to keep.

    Args:
        finished: the graph in the file, with its softmax and with what it does to pixels.
        reference: what that is held against.

    Raises:
        ParityError: a runtime refuses the file, or misses the limits; says which, and what can be done.
    """
    pictures, labels = made.held_out.pictures, made.held_out.labels
    pictures = pictures if front is None else _levels(pictures, front)
    expected = expect(reference, pictures, made.slices, dtype=torch.float32)
    batches = [np.ascontiguousarray(pictures[start:stop].numpy()) for start, stop in made.slices]
    limits, truth = made.request.limits, joined(expected.reference)
    simulated = made.quantized.judgement
    if front is not None or options.softmax:
        outputs = simulate(finished, pictures, made.slices)
        simulated = judge(outputs, truth, limits, runtime=simulated.runtime, probabilities=options.softmax, labels=labels)
    judgements, answers = [], {}
    for name, run in _runtimes(made.request.quantize_for).items():
        say(f"judge in {name}")
        answers[name] = run(draft, batches)
        found = judge(joined(answers[name]), truth, limits, runtime=name, probabilities=options.softmax, labels=labels)
        if not found.passed or found.relative_error > allowed_in_a_runtime(simulated.relative_error):
            raise ParityError(_refusal(options.path, made, found, simulated.relative_error), ParityReport.of([found.row(limits)], "int8"))
        judgements.append(found)
    return judgements, _kept(made, pictures, expected, answers, front, options)


def _runtimes(quantize_for: QuantizeFor) -> Mapping[str, Callable[[Path, Sequence[NDArray]], list[list[NDArray[np.float64]]]]]:
    """Those that will run the file. For TensorRT, onnxruntime stands in: it computes such a graph as it is written."""
    found = runtimes_for("onnx")
    return {"onnxruntime": found["onnxruntime"]} if quantize_for is QuantizeFor.tensorrt else found


def _refusal(path: Path, made: QuantizedGraph, found: Judgement, own: float) -> str:
    how = f"misses the limits: {found.reason}" if found.reason else f"is off by {found.relative_error:.3g}"
    text = f"{path} was not written: {found.runtime} {how}"
    if found.relative_error <= allowed_in_a_runtime(own):
        return f"{text}; the layers that hurt most: {made.worst()}"
    text += f", while the same graph is off by {own:.2g} in eager PyTorch: {found.runtime} computes it wrongly"
    if not made.portable and not has_vnni():
        return f"{text}; this CPU has no VNNI, so that weights of 8 bits saturate: --portable (portable=True) keeps them to 7"
    if made.request.quantize_for is not QuantizeFor.cpu:
        return f"{text}; --quantize-for cpu (uint8 activations) is what it runs best"
    return text


def _levels(pictures: Tensor, front: PixelInput) -> Tensor:
    """Preprocessed pictures [N, C, H, W] as the pixels [N, H, W, C] uint8 that they came from."""
    scale, shift = scale_and_shift(front.preprocessing)
    return ((pictures.double() - shift) / scale).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _kept(
    made: QuantizedGraph, pictures: Tensor, expected: Expected, answers: Mapping[str, list[Outputs]], front: PixelInput | None, options: ExportOptions
) -> dict[str, Any]:
    """Whole batches, the first ones, with what the reference says of them."""
    weights = sum(tensor.numel() * 4 for tensor in made.quantized.graph.constants().values())
    room = int(min(_MOST, max(_FEWEST, max(weights * _SHARE_OF_WEIGHTS, _SMALL) // pictures[0].numel())))
    slices = [bounds for bounds in made.slices if bounds[1] <= max(room, made.slices[0][1])]
    stop = slices[-1][1]
    unique = min(stop, len(made.levels.levels))  # the others are these again
    kept = range(len(slices))
    truth, limits = joined([expected.reference[index] for index in kept]), made.request.limits
    own = [judge(joined(runs[: len(slices)]), truth, limits, runtime=name, probabilities=options.softmax) for name, runs in answers.items()]
    tolerance = allowed_in_a_runtime(max(judgement.relative_error for judgement in own))
    levels = made.levels
    pair = golden.GoldenInput(levels.levels[:unique], levels.scale, levels.offset) if front is None else golden.GoldenInput(pictures[:unique].numpy())
    batches = tuple(tuple(row % unique for row in range(start, end)) for start, end in slices)
    outputs = tuple(expected.reference[index] for index in kept)
    return golden.encode(pair, golden.GoldenPair(pair.values(), batches, outputs, tolerance, "int8"), rows="all rows")


def judge_again(path: Path, metadata: Mapping[str, Any], pair: golden.GoldenPair, failures: list[str]) -> tuple[list[Judgement], Limits]:
    """The figures of each runtime on the pictures stored in a file; what refuses the file is added to `failures`.

    Raises:
        KeyError, ValueError: the description does not hold what `description` writes.
    """
    about = metadata["quantization"]
    limits = Limits(pair.tolerance, float(about["limits"]["max_accuracy_drop"]))
    batches = [np.ascontiguousarray(pair.pictures[list(batch)]) for batch in pair.batches]
    softmax = metadata["outputs"][0]["name"] == "probabilities"
    judgements = []
    for name, run in _runtimes(QuantizeFor(about["for"])).items():
        try:
            results = run(path, batches)
        except ParityError as error:
            failures.append(str(error))
            continue
        found = judge(joined(results), joined(pair.outputs), limits, runtime=name, probabilities=softmax)
        if not found.passed and about["weight_bits"] > 7 and not has_vnni():
            why = (
                f"this CPU has no VNNI, so that weights of 8 bits saturate (the file was judged on {about['instruction_set']}): export it --portable"
            )
            found = replace(found, reason=f"{found.reason}; {why}")
        judgements.append(found)
    return judgements, limits
