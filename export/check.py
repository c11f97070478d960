"""Check a file before it exists for anybody: the pictures, what the reference makes of them, and what each runtime of the file does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcnn.errors import ParityError
from fastcnn.export import golden
from fastcnn.export.options import ExportOptions
from fastcnn.export.pixel_input import PixelInput
from fastcnn.export.runtimes import runtimes_for
from fastcnn.inputs import Inputs, as_inputs, cut
from fastcnn.parity import Expected, Outputs, ParityReport, bound, compare, expect, make_pictures

# What a file is checked with: for each input the golden pair and further pictures [N, ...], and the options that say at which batches.
PictureSet = tuple[tuple[golden.GoldenInput, ...], tuple[Tensor, ...], ExportOptions]


def picture_sets(inputs: Inputs, front: PixelInput | None, options: ExportOptions) -> list[PictureSet]:
    """What a file is checked with; a file for pictures of any size is checked at more sizes than one.

    Args:
        inputs: [N, ...] each, for the sizes and the range of normalised pictures.
        front: what the file does before the model; None where it takes normalised pictures.
    """
    examples = [example.detach().to("cpu", torch.float32 if example.is_floating_point() else None) for example in as_inputs(inputs)]
    count = max(golden.COUNT, *(stop for _, stop in options.slices)) - golden.COUNT
    if front is None:
        pairs = tuple(_golden_input(example) for example in examples)
        return [(pairs, tuple(make_pictures(example[:2], count) for example in examples), options)]
    sets: list[PictureSet] = []
    for height, width in front.sizes_to_check():
        pair = golden.GoldenInput.of_pixels(height, width, front.preprocessing.channel_count)
        levels = torch.from_numpy(pair.values()).permute(0, 3, 1, 2).float()
        noise = make_pictures(levels, golden.COUNT + count)[golden.COUNT :]
        sets.append(((pair,), (noise.round().to(torch.uint8).permute(0, 2, 3, 1),), options))
        options = replace(options, batch_sizes=(1,))
    return sets


def _golden_input(example: Tensor) -> golden.GoldenInput:
    if not example.is_floating_point():
        low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 0)
        return golden.GoldenInput.of_integers(example.shape[1:], low, high, str(example.dtype).removeprefix("torch."))
    finite = example[example.isfinite()]
    bounds = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    return golden.GoldenInput.spanning(example.shape[1:], *bounds)


@dataclass(frozen=True)
class FileCheck:
    """One set of pictures, for each input, and what the reference makes of them; the golden pair comes first."""

    options: ExportOptions
    reference: nn.Module
    pairs: tuple[golden.GoldenInput, ...]
    pictures: tuple[Tensor, ...]
    expected: Expected

    @classmethod
    def prepare(cls, reference: nn.Module, pictures: PictureSet) -> FileCheck:
        """Runs the reference, in float64 and eagerly in the file's precision."""
        pairs, others, options = pictures
        stacked = tuple(torch.cat([torch.from_numpy(pair.values()), more]) for pair, more in zip(pairs, others, strict=True))
        expected = expect(reference, stacked, [*options.slices, (0, golden.COUNT)], dtype=options.precision.dtype, widened=True)
        return cls(options, reference, pairs, stacked, expected)

    def require_finite(self, name: str) -> None:
        """Raises ParityError where the model `name` itself, run eagerly in the file's precision, gives NaN or infinity for finite pictures."""
        expected = self.expected
        assert expected.eager is not None
        for (start, stop), precise, eager in zip(expected.slices, expected.reference, expected.eager, strict=True):
            if not all(bool(pictures.isfinite().all()) for pictures in cut(self.pictures, start, stop)):
                continue
            for truth, native in zip(precise, eager, strict=True):
                count = int(np.count_nonzero(~np.isfinite(native)))
                if not count:
                    continue
                what = f"{self.options.path} was not written: {name}"
                where = f"NaN or infinity at {count} of {native.size} outputs for ordinary pictures"
                if not np.isfinite(truth).all():
                    raise ParityError(f"{what} itself gives {where}, in float64 too: look at its weights")
                raise ParityError(f"{what} run eagerly in {expected.dtype} gives {where}, and in float64 none: look at its weights")

    def batches(self) -> list[NDArray | tuple[NDArray, ...]]:
        """What a runtime is given, in the layout and dtype of the file."""
        return [
            golden.together([np.ascontiguousarray(pictures.numpy()) for pictures in cut(self.pictures, start, stop)])
            for start, stop in self.expected.slices[:-1]
        ]

    def compare(self, results: Sequence[Outputs], runtime: str) -> ParityReport:
        """The report on what a runtime returned for `batches`."""
        expected = self.expected
        assert expected.eager is not None
        wanted = replace(
            expected,
            slices=expected.slices[:-1],
            reference=expected.reference[:-1],
            eager=expected.eager[:-1],
            ordinary=None if expected.ordinary is None else expected.ordinary[:-1],
        )
        return compare(results, wanted, tolerance=self.options.tolerance, runtime=runtime)

    def golden(self) -> dict[str, Any]:
        """The golden pair and what the reference says of it, for the file."""
        batches = golden.batches_for(self.options.batch_size)
        precise, eager = self._golden_outputs(batches)
        pairs = [both for truths, natives in zip(precise, eager, strict=True) for both in zip(truths, natives, strict=True)]
        rule = max(bound(self.expected.dtype, truth, native) for truth, native in pairs)
        tolerance = rule if self.options.tolerance is None else self.options.tolerance
        # NaN and infinities are eager PyTorch's.
        outputs = [
            [np.where(np.isfinite(native), truth, native) for truth, native in zip(truths, natives, strict=True)]
            for truths, natives in zip(precise, eager, strict=True)
        ]
        numbers = tuple(map(tuple, batches))
        pair, *others = self.pairs
        found = golden.GoldenPair(pair.values(), numbers, tuple(outputs), tolerance, self.expected.dtype)
        return golden.encode(pair, found, others=others)

    def _golden_outputs(self, batches: list[list[int]]) -> tuple[list[Outputs], list[Outputs]]:
        """(float64, eager) first rows of each batch."""
        expected = self.expected
        assert expected.eager is not None
        if expected.independent:
            precise, eager = ([[output[: len(batch)] for output in run] for batch in batches] for run in (expected.reference[-1], expected.eager[-1]))
            return precise, eager
        precise, eager = [], []
        for batch in batches:
            numbered = tuple(pictures[batch] for pictures in self.pictures)
            alone = expect(self.reference, numbered, [(0, len(batch))], dtype=self.options.precision.dtype, widened=True)
            assert alone.eager is not None
            precise.append(golden.first_rows(alone.reference[0], batch))
            eager.append(golden.first_rows(alone.eager[0], batch))
        return precise, eager


@dataclass(frozen=True)
class Checked:
    """What the runtimes made of a file.

    Attributes:
        reports: name → report of each runtime that the file is for; where none passed, of those that ran it.
        left_out: name → why, of each that cannot run the file, or computes something else, while another one is right.
    """

    reports: dict[str, ParityReport]
    left_out: dict[str, str]


def run_checks(checks: Sequence[FileCheck], path: Path, say: Callable[[str], None]) -> Checked:
    """Run the file at `path` in every runtime; `say` is told which is at work.

    Raises ParityError where no runtime can run it.
    """
    batches = [batch for check in checks for batch in check.batches()]
    passed: dict[str, ParityReport] = {}
    failed: dict[str, ParityReport] = {}
    left_out: dict[str, str] = {}
    refusals: list[ParityError] = []
    for name, run in runtimes_for(checks[0].options.format.name).items():
        say(f"check in {name}")
        try:
            results = iter(run(path, batches))
        except ParityError as error:
            refusals.append(error)
            left_out[name] = str(error)
            continue
        rows = [row for check in checks for row in check.compare([next(results) for _ in check.batches()], name).rows]
        report = ParityReport.of(rows, checks[0].expected.dtype, notes=checks[0].expected.notes)
        if report.passed:
            passed[name] = report
        else:
            failed[name] = report
            left_out[name] = f"{name} does not compute what the model computes (relative error {report.relative_error:.0e})"
    if not passed and not failed:
        raise refusals[0]
    return Checked(passed, left_out) if passed else Checked(failed, {})
