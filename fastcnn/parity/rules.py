"""The rules that every engine, file and benchmark is held to, on outputs that are already there; nothing here runs a model.

The reference runs in float64. A candidate passes, at each batch size, when

- its relative L2 error ‖candidate − reference‖ / ‖reference‖ is within the bound for its dtype: twice the error that eager PyTorch makes in that way
  on the same input, or a floor where that is more: 1e-5 for float32, the unit roundoff for float16, bfloat16 and float32 whose products may use TF32.
  Eager PyTorch may be wrong itself, so no bound is above a ceiling (`CEILING`); float64 has 1e-10;
- top-1 agrees for each picture whose margin between the reference's two best classes exceeds the candidate's largest error on that picture;
- NaN and infinities stand exactly where eager PyTorch in the candidate's dtype has them. Those positions stay out of the two rules above;
- for an ordinary picture, one of finite values of sensible size, there are none but those of the float64 reference, whatever eager PyTorch returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import ParityError, RequestError

# The flattened outputs of one batch, float64.
Outputs = list[NDArray[np.float64]]
# Pictures [start, stop) of a picture set.
Slice = tuple[int, int]

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
TF32 = "float32 with TF32 products"
_UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, TF32: 2.0**-11}
# Beyond these, being no worse than eager PyTorch is no merit. float16 and TF32: a hundred times their roundoff, ten to fifty times what they do to
# the networks here. bfloat16 rounds eight times as coarsely, but at eight times the bound little of the answer would be left: half of that.
# float32: a network that loses five of its seven digits is to be run in float64.
CEILING = {"float32": 1e-2, TF32: 5e-2, "float16": 5e-2, "bfloat16": 2e-1}
# Activations scale with the input, and a LayerNorm squares them: with inputs below this, a gain of 10^9 and a square stay clear of float32's end.
LARGEST_ORDINARY_INPUT = 1e10


@dataclass(frozen=True)
class BatchParity:
    """One batch of one candidate.

    Attributes:
        runtime: what ran the candidate, where a caller says so.
        batch_size: pictures.
        relative_error, tolerance: of the output that uses most of its bound.
        max_abs_error: the largest over all outputs.
        top1_agreement: share of the decisive pictures with the same best class; 1 where no picture is decisive.
        decisive: pictures whose margin in the reference exceeds the error.
        reason: why it failed; empty where it passed.
        eager_error: that of eager PyTorch in the candidate's dtype on the same output, where it raised the bound; 0 where it did not.
    """

    runtime: str
    batch_size: int
    relative_error: float
    tolerance: float
    max_abs_error: float
    top1_agreement: float
    decisive: int
    reason: str = ""
    eager_error: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether no rule was broken."""
        return not self.reason


@dataclass(frozen=True)
class ParityReport:
    """The verdict on a candidate: the worst figures over all batches, and each batch in `rows`."""

    passed: bool
    max_abs_error: float
    relative_error: float
    top1_agreement: float
    tolerance: float
    dtype: str
    batch_sizes: tuple[int, ...]
    rows: tuple[BatchParity, ...]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    eager_error: float = 0.0

    @classmethod
    def of(cls, rows: Sequence[BatchParity], dtype: str, failures: Sequence[str] = (), notes: Sequence[str] = ()) -> ParityReport:
        """Sums up `rows`; `failures` are reasons that stand in no row, such as a changed digest, `notes` what could not be checked."""
        worst = max(rows, key=lambda row: _share(row.relative_error, row.tolerance), default=None)
        reasons = (*failures, *(f"{row.runtime + ' at ' if row.runtime else ''}batch {row.batch_size}: {row.reason}" for row in rows if row.reason))
        return cls(
            passed=not reasons,
            max_abs_error=max((row.max_abs_error for row in rows), default=0.0),
            relative_error=worst.relative_error if worst else 0.0,
            top1_agreement=min((row.top1_agreement for row in rows), default=1.0),
            tolerance=worst.tolerance if worst else 0.0,
            dtype=dtype,
            batch_sizes=tuple(dict.fromkeys(row.batch_size for row in rows)),
            rows=tuple(rows),
            failures=reasons,
            notes=tuple(notes),
            eager_error=worst.eager_error if worst else 0.0,
        )

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What ran the candidate, each once."""
        return tuple(dict.fromkeys(row.runtime for row in self.rows if row.runtime))

    def summary(self) -> str:
        """The report in one line."""
        figures = (
            "not run"
            if not self.rows
            else (
                f"relative error {self.relative_error:.2g} (bound {self.tolerance:.2g}{_because(self.dtype, self.eager_error)}), "
                f"largest difference {self.max_abs_error:.2g}, "
                f"top-1 agreement {self.top1_agreement:.0%}, {self.dtype}, batch {', '.join(map(str, self.batch_sizes))}"
            )
        )
        where = f" in {' and '.join(self.runtimes)}" if self.runtimes else ""
        where += "".join(f"; {note}" for note in self.notes)
        if self.passed:
            return f"passed: {figures}{where}"
        return f"FAILED: {'; '.join(self.failures)}: {figures}{where}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"rows": [asdict(row) | {"passed": row.passed} for row in self.rows]}

    def require(self, what: str) -> None:
        """Raises ParityError, with the largest difference, unless the report passed."""
        if not self.passed:
            reasons = "; ".join(self.failures)
            if not self.rows:
                raise ParityError(f"{what} does not compute what its reference computes: {reasons}", self)
            raise ParityError(
                f"{what} does not compute what its reference computes: {reasons} "
                f"(largest difference {self.max_abs_error:.3g}, relative error {self.relative_error:.3g}, "
                f"bound {self.tolerance:.3g}{_because(self.dtype, self.eager_error)})",
                self,
            )


@dataclass(frozen=True)
class Expected:
    """What a candidate must return for each slice of a picture set.

    Attributes:
        slices: the pictures of each batch.
        reference: float64 outputs, per slice.
        eager: what eager PyTorch returns in `dtype`, per slice; None where it is not known, NaN and infinities are then the reference's.
        independent: the model treats pictures independently of each other.
        ordinary: which pictures [N] of each slice hold nothing but finite values up to `LARGEST_ORDINARY_INPUT`; None where the input is not known.
        notes: how the reference was run, where that is out of the ordinary.
    """

    dtype: str
    slices: tuple[Slice, ...]
    reference: tuple[Outputs, ...]
    eager: tuple[Outputs, ...] | None = None
    independent: bool = True
    ordinary: tuple[NDArray[np.bool_], ...] | None = None
    notes: tuple[str, ...] = ()


def compare(candidate: Sequence[Outputs], expected: Expected, *, tolerance: float | None = None, runtime: str = "") -> ParityReport:
    """Hold outputs that are already there against `expected`; runs nothing.

    Args:
        candidate: for each slice of `expected` the flattened outputs, float64 arrays with the batch first.
        tolerance: replaces the bound on the relative L2 error.
        runtime: a label for the rows.
    """
    wanted = [_Wanted.of(expected, index) for index in range(len(expected.slices))]
    rows = [_compare_batch(outputs, of_batch, tolerance, runtime) for outputs, of_batch in zip(candidate, wanted, strict=True)]
    return ParityReport.of(rows, expected.dtype, notes=expected.notes)


def bound(dtype: str, reference: NDArray[np.float64], eager: NDArray[np.float64] | None) -> float:
    """The largest relative L2 error that passes for one output; `eager` may be missing where the dtype has a bound without it."""
    if dtype not in TOLERANCE and dtype not in _UNIT_ROUNDOFF:
        raise RequestError(f"no parity rule for {dtype}; there are rules for {', '.join([*TOLERANCE, *_UNIT_ROUNDOFF])}")
    floor = TOLERANCE.get(dtype) or _UNIT_ROUNDOFF[dtype]
    if dtype not in CEILING or (eager is None and dtype in TOLERANCE):
        return floor
    if eager is None:
        raise RequestError(f"the bound for {dtype} is twice the error of eager PyTorch, whose outputs are not given")
    return min(max(2 * _eager_error(reference, eager), floor), CEILING[dtype])


def _eager_error(reference: NDArray[np.float64], eager: NDArray[np.float64]) -> float:
    return relative_error(eager, reference, np.isfinite(reference) & np.isfinite(eager))


def _because(dtype: str, eager_error: float) -> str:
    """Why a bound is not the ordinary one, to stand behind it."""
    return f": eager {dtype} itself is off by {eager_error:.2g}" if eager_error else ""


def must_be_finite(expected: Expected, index: int, truth: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Positions of an output that an ordinary picture of slice `index` gives and the reference, which is `truth`, has a finite value for."""
    finite = np.isfinite(truth)
    if expected.ordinary is None:
        return np.zeros_like(finite)
    ordinary = expected.ordinary[index]
    if expected.independent and truth.shape[:1] == ordinary.shape:
        return finite & ordinary.reshape(-1, *(1 for _ in truth.shape[1:]))
    return finite & ordinary.all()


@dataclass(frozen=True)
class _Wanted:
    """One slice of an `Expected`."""

    dtype: str
    batch_size: int
    reference: Outputs
    eager: Outputs | None
    finite: list[NDArray[np.bool_]]

    @classmethod
    def of(cls, expected: Expected, index: int) -> _Wanted:
        start, stop = expected.slices[index]
        eager, reference = expected.eager[index] if expected.eager is not None else None, expected.reference[index]
        return cls(expected.dtype, stop - start, reference, eager, [must_be_finite(expected, index, truth) for truth in reference])


def _compare_batch(outputs: Outputs, wanted: _Wanted, tolerance: float | None, runtime: str) -> BatchParity:
    shapes, right = [output.shape for output in outputs], [output.shape for output in wanted.reference]
    if shapes != right:
        reason = f"output shapes {shapes}, the reference has {right}"
        return BatchParity(runtime, wanted.batch_size, math.inf, tolerance or 0.0, math.inf, 0.0, 0, reason)
    relative, limit, largest, eager_error, agreeing, decisive, reasons = 0.0, 0.0, 0.0, 0.0, 0, 0, []
    for position, (output, truth) in enumerate(zip(outputs, wanted.reference, strict=True)):
        native = wanted.eager[position] if wanted.eager is not None else truth
        own = _eager_error(truth, native)
        allowed = bound(wanted.dtype, truth, native if wanted.eager is not None else None) if tolerance is None else tolerance
        # Half precision always goes by eager PyTorch; worth a word is where float32 does, and where the ceiling cuts in.
        unusual = 2 * own > allowed or allowed > TOLERANCE.get(wanted.dtype, math.inf)
        own = own if tolerance is None and unusual else 0.0
        which = f"output {position}: " if len(outputs) > 1 else ""
        overflowed = int(np.count_nonzero(wanted.finite[position] & ~np.isfinite(output)))
        misplaced = int(np.count_nonzero(kinds_of(output) != kinds_of(native)))
        if overflowed:
            reasons.append(f"{which}NaN or infinity at {overflowed} positions on ordinary input: {wanted.dtype} is too narrow for this network")
        elif misplaced:
            reasons.append(f"{which}NaN or infinity at {misplaced} positions where eager PyTorch has none, or the other way round")
        finite = np.isfinite(output) & np.isfinite(truth) & np.isfinite(native)
        error = relative_error(output, truth, finite)
        if error > allowed:
            reasons.append(f"{which}relative error {error:.3g} is above {allowed:.3g}{_because(wanted.dtype, own)}")
        if position == 0 or _share(error, allowed) > _share(relative, limit):
            relative, limit, eager_error = error, allowed, own
        difference = np.abs(np.where(finite, output, 0.0) - np.where(finite, truth, 0.0))
        largest = max(largest, float(difference.max(initial=0.0)))
        same, clear = _top1(output, truth, difference, finite)
        agreeing, decisive = agreeing + same, decisive + clear
        if same < clear:
            reasons.append(f"{which}top-1 differs on {clear - same} of {clear} pictures")
    agreement = agreeing / decisive if decisive else 1.0
    return BatchParity(runtime, wanted.batch_size, relative, limit, largest, agreement, decisive, "; ".join(reasons), eager_error)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits [N, classes, …] as probabilities of the classes."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def relative_error(output: NDArray[np.float64], truth: NDArray[np.float64], finite: NDArray[np.bool_]) -> float:
    """Relative L2 error over the `finite` positions; the absolute one where the reference is zero."""
    error, norm = float(np.linalg.norm(output[finite] - truth[finite])), float(np.linalg.norm(truth[finite]))
    return error / norm if norm > 0 else error


def _share(error: float, allowed: float) -> float:
    """How much of its bound an error uses."""
    if allowed > 0:
        return error / allowed
    return math.inf if error > 0 else 0.0


def kinds_of(values: NDArray[np.float64]) -> NDArray[np.int8]:
    """0 for a finite value, 1 for NaN, 2 and 3 for the two infinities."""
    return (np.isnan(values) * 1 + np.isposinf(values) * 2 + np.isneginf(values) * 3).astype(np.int8)


def _top1(output: NDArray[np.float64], truth: NDArray[np.float64], difference: NDArray[np.float64], finite: NDArray[np.bool_]) -> tuple[int, int]:
    """(agreeing, decisive) over pictures, and over positions where classes [N, K, ...] have some."""
    if truth.ndim < 2 or truth.shape[1] < 2 or truth.size == 0:
        return 0, 0
    two_best = np.sort(np.where(finite, truth, -np.inf), axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        clear = (two_best[:, 1] - two_best[:, 0] > difference.max(axis=1)) & finite.all(axis=1)
    same = output.argmax(axis=1) == truth.argmax(axis=1)
    return int(np.count_nonzero(same & clear)), int(np.count_nonzero(clear))
