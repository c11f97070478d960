"""What of a float16 file stays in float32: found out on the pictures that the file is checked with, and on those of a calibration if one is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcnn.errors import RequestError
from fastcnn.export.check import picture_sets
from fastcnn.export.options import ExportOptions
from fastcnn.export.pixel_input import PixelInput
from fastcnn.graph.ir import CapturedGraph
from fastcnn.inputs import Inputs, cut
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.half import WideLayers, find_wide_layers
from fastcnn.quantization.ranges import Ranges
from fastcnn.quantization.samples import draw

_BATCH = 8
_OWN = "the check"


@dataclass(frozen=True)
class Surroundings:
    """What is known of the pictures that a graph will meet.

    Attributes:
        example: [N, …], as the model takes it.
        front: what the file does before the model.
        preprocessing: from a picture to the input of the graph, where that is known.
        weights_sha256: of the model's own weights, which saved ranges must be of.
    """

    example: Inputs
    front: PixelInput | None
    preprocessing: Preprocessing | None
    weights_sha256: str


def wide_layers(graph: CapturedGraph, options: ExportOptions, around: Surroundings, say: Callable[[str], None]) -> tuple[WideLayers, str]:
    """(what stays in float32, where the pictures came from) of `graph`, which the passes went over.

    Raises:
        RequestError, InputError: the calibration cannot serve.
    """
    batches: Iterator[Inputs] = _own(options, around)
    done = 0
    source = _OWN
    if options.half is not None:
        given, name = _given(graph, options, around)
        batches, source = itertools.chain(batches, given), f"{name} and {_OWN}"

    def seen(count: int) -> None:
        nonlocal done
        done += count
        say(f"float16 ranges: {done} pictures")

    return find_wide_layers(graph, batches, seen), source


def _own(options: ExportOptions, around: Surroundings) -> Iterator[Inputs]:
    """[N, …] each: the pictures that the file will be checked with, as the model takes them; those with NaN or infinity say nothing."""
    for pairs, others, _ in picture_sets(around.example, around.front, options):
        inputs = [torch.cat([torch.from_numpy(pair.values()), more]) for pair, more in zip(pairs, others, strict=True)]
        if around.front is not None:
            inputs = [PixelInput(around.front.preprocessing, resize=around.front.resize, normalize=True)(inputs[0])]
        finite = torch.stack([pictures.reshape(len(pictures), -1).isfinite().all(1) for pictures in inputs]).all(0)
        kept = [pictures[finite] for pictures in inputs]
        yield from (cut(kept, start, start + _BATCH) for start in range(0, int(finite.sum()), _BATCH))


def _given(graph: CapturedGraph, options: ExportOptions, around: Surroundings) -> tuple[Iterator[Tensor], str]:
    request = options.half
    assert request is not None
    if request.ranges_file is not None:
        ranges = Ranges.load(request.ranges_file)
        if ranges.weights_sha256 != around.weights_sha256:
            raise RequestError(
                f"the ranges in {request.ranges_file} were observed with other weights than those of this {graph.info['name']}: calibrate again"
            )
        pictures = torch.cat([ranges.kept.values(), ranges.held_out.values()])
        return iter(pictures.split(_BATCH)), f"{request.ranges_file.name} ({ranges.source})"
    shape = [size for size in graph.input_shape[1:] if size is not None]
    samples = draw(request.calibration, shape, around.preprocessing, request.samples)

    def batches() -> Iterator[Tensor]:
        yield from samples.batches()
        yield torch.stack(samples.held_out)  # kept apart to judge an int8 file by: here they are pictures like the others

    return batches(), samples.source
