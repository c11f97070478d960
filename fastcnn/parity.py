"""Does a candidate compute the same function as its reference? The rules that every engine, file and benchmark is held to.

The reference runs in float64. A candidate passes, at each batch size, when

- its relative L2 error ‖candidate − reference‖ / ‖reference‖ is within the bound for its dtype: 1e-5 for float32; for float16, bfloat16 and float32
  whose products may use TF32 twice the error that eager PyTorch makes in that way on the same input, or the unit roundoff where that is more;
- top-1 agrees for each picture whose margin between the reference's two best classes exceeds the candidate's largest error on that picture;
- NaN and infinities stand exactly where eager PyTorch in the candidate's dtype has them. Those positions stay out of the two rules above.

`verify` runs everything; `expect` and `compare` are its two halves, for callers that hold several candidates against one reference.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import ParityError, RequestError
from fastcnn.precision import exact_float32, float32_products

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# The flattened outputs of one batch, float64.
Outputs = list[NDArray[np.float64]]
# Pictures [start, stop) of a picture set.
Slice = tuple[int, int]

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
_TF32 = "float32 with TF32 products"
_UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, _TF32: 2.0**-11}
# Two float64 runs of one picture, alone and within a batch, differ by rounding only.
_SAME_IN_FLOAT64 = 1e-9


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
    """

    runtime: str
    batch_size: int
    relative_error: float
    tolerance: float
    max_abs_error: float
    top1_agreement: float
    decisive: int
    reason: str = ""

    @property
    def passed(self) -> bool:
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

    @classmethod
    def of(cls, rows: Sequence[BatchParity], dtype: str, failures: Sequence[str] = ()) -> ParityReport:
        """Sums up `rows`; `failures` are reasons that stand in no row, such as a changed digest."""
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
        )

    @property
    def runtimes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.runtime for row in self.rows if row.runtime))

    def summary(self) -> str:
        """The report in one line."""
        figures = (
            f"relative error {self.relative_error:.2g} (bound {self.tolerance:.2g}), largest difference {self.max_abs_error:.2g}, "
            f"top-1 agreement {self.top1_agreement:.0%}, {self.dtype}, batch {', '.join(map(str, self.batch_sizes))}"
        )
        where = f" in {' and '.join(self.runtimes)}" if self.runtimes else ""
        if self.passed:
            return f"passed: {figures}{where}"
        return f"FAILED: {'; '.join(self.failures)}: {figures}{where}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"rows": [asdict(row) | {"passed": row.passed} for row in self.rows]}

    def require(self, what: str) -> None:
        """Raises ParityError, with the largest difference, unless the report passed."""
        if not self.passed:
            raise ParityError(
                f"{what} does not compute what its reference computes: {'; '.join(self.failures)} "
                f"(largest difference {self.max_abs_error:.3g}, relative error {self.relative_error:.3g}, bound {self.tolerance:.3g})",
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
    """

    dtype: str
    slices: tuple[Slice, ...]
    reference: tuple[Outputs, ...]
    eager: tuple[Outputs, ...] | None = None
    independent: bool = True


def verify(
    candidate: Callable[[Tensor], Any],
    reference: nn.Module,
    example_input: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> ParityReport:
    """Hold `candidate` against `reference` at several batch sizes.

    Args:
        candidate: takes a tensor [N, ...] of the example's dtype and device; returns a tensor, or tuples, lists or dicts of tensors.
        reference: the model; a copy of it runs in evaluation mode, in float64, on the example's device. It is not changed.
        example_input: [N, ...]; its pictures come first in every batch, seeded random ones of the same per-channel range and statistics follow.
        batch_sizes: sizes to check, each at least 1.
        dtype: what the candidate computes in: its `dtype` attribute by default, or else the dtype of its first output. A candidate whose attribute
            `allow_tf32` is true is held to the bound for TF32.
        tolerance: replaces the bound on the relative L2 error.
        seed: of the random pictures.

    Returns a report, passed or not; `report.require("…")` raises ParityError where it did not.

    Raises:
        RequestError: no batch size, one below 1, or a reference that cannot run in float64.
    """
    import torch

    if not batch_sizes or min(batch_sizes) < 1:
        raise RequestError(f"batch sizes must be whole numbers from 1; they are {tuple(batch_sizes)}")
    pictures = make_pictures(example_input, max(batch_sizes), seed=seed)
    slices = tuple((0, size) for size in batch_sizes)
    with exact_float32(), torch.no_grad():
        raw = [candidate(pictures[start:stop]) for start, stop in slices]
    if dtype is None:
        dtype = _dtype_of(candidate, raw[0])
    tf32 = dtype == torch.float32 and getattr(candidate, "allow_tf32", False) is True
    expected = expect(reference, pictures, slices, dtype=dtype, tf32=tf32)
    return compare([flatten(output) for output in raw], expected, tolerance=tolerance)


def expect(reference: nn.Module, pictures: Tensor, slices: Sequence[Slice], *, dtype: torch.dtype, tf32: bool = False) -> Expected:
    """Run `reference` in float64, and eagerly in `dtype`, with TF32 products where `tf32`, on each slice of `pictures`.

    A model that treats pictures independently, which is checked, runs once for all slices: float64 is dear.

    Raises:
        RequestError: the reference cannot run in float64, or not in `dtype`.
    """
    import torch

    with exact_float32(), torch.no_grad():
        precise, independent = _run_slices(_runner(reference, torch.float64, pictures.device), pictures, slices, None)
    with float32_products(tf32=tf32), torch.no_grad():
        eager, _ = _run_slices(_runner(reference, dtype, pictures.device), pictures, slices, independent)
    return Expected(_TF32 if tf32 else _name(dtype), tuple(slices), precise, eager, independent)


def compare(candidate: Sequence[Outputs], expected: Expected, *, tolerance: float | None = None, runtime: str = "") -> ParityReport:
    """Hold outputs that are already there against `expected`; runs nothing.

    Args:
        candidate: for each slice of `expected` the flattened outputs, float64 arrays with the batch first.
        tolerance: replaces the bound on the relative L2 error.
        runtime: a label for the rows.
    """
    rows = []
    for index, (outputs, (start, stop)) in enumerate(zip(candidate, expected.slices, strict=True)):
        eager = expected.eager[index] if expected.eager is not None else None
        rows.append(_compare_batch(outputs, expected.reference[index], eager, expected.dtype, tolerance, runtime, stop - start))
    return ParityReport.of(rows, expected.dtype)


def bound(dtype: str, reference: NDArray[np.float64], eager: NDArray[np.float64] | None) -> float:
    """The largest relative L2 error that passes for one output."""
    if dtype in TOLERANCE:
        return TOLERANCE[dtype]
    if dtype not in _UNIT_ROUNDOFF:
        raise RequestError(f"no parity rule for {dtype}; there are rules for {', '.join([*TOLERANCE, *_UNIT_ROUNDOFF])}")
    if eager is None:
        raise RequestError(f"the bound for {dtype} is twice the error of eager PyTorch, whose outputs are not given")
    return max(2 * _relative_error(eager, reference, np.isfinite(reference) & np.isfinite(eager)), _UNIT_ROUNDOFF[dtype])


def _compare_batch(
    outputs: Outputs, reference: Outputs, eager: Outputs | None, dtype: str, tolerance: float | None, runtime: str, batch_size: int
) -> BatchParity:
    shapes, wanted = [output.shape for output in outputs], [output.shape for output in reference]
    if shapes != wanted:
        return BatchParity(runtime, batch_size, math.inf, tolerance or 0.0, math.inf, 0.0, 0, f"output shapes {shapes}, the reference has {wanted}")
    relative, limit, largest, agreeing, decisive, reasons = 0.0, 0.0, 0.0, 0, 0, []
    for position, (output, truth) in enumerate(zip(outputs, reference, strict=True)):
        native = eager[position] if eager is not None else truth
        allowed = bound(dtype, truth, eager[position] if eager is not None else None) if tolerance is None else tolerance
        which = f"output {position}: " if len(outputs) > 1 else ""
        misplaced = int(np.count_nonzero(_kind(output) != _kind(native)))
        if misplaced:
            reasons.append(f"{which}NaN or infinity at {misplaced} positions where eager PyTorch has none, or the other way round")
        finite = np.isfinite(output) & np.isfinite(truth) & np.isfinite(native)
        error = _relative_error(output, truth, finite)
        if error > allowed:
            reasons.append(f"{which}relative error {error:.3g} is above {allowed:.3g}")
        if position == 0 or _share(error, allowed) > _share(relative, limit):
            relative, limit = error, allowed
        difference = np.abs(np.where(finite, output, 0.0) - np.where(finite, truth, 0.0))
        largest = max(largest, float(difference.max(initial=0.0)))
        same, clear = _top1(output, truth, difference, finite)
        agreeing, decisive = agreeing + same, decisive + clear
        if same < clear:
            reasons.append(f"{which}top-1 differs on {clear - same} of {clear} pictures")
    return BatchParity(runtime, batch_size, relative, limit, largest, agreeing / decisive if decisive else 1.0, decisive, "; ".join(reasons))


def _relative_error(output: NDArray[np.float64], truth: NDArray[np.float64], finite: NDArray[np.bool_]) -> float:
    """Relative L2 error over the `finite` positions; the absolute one where the reference is zero."""
    error, norm = float(np.linalg.norm(output[finite] - truth[finite])), float(np.linalg.norm(truth[finite]))
    return error / norm if norm > 0 else error


def _share(error: float, allowed: float) -> float:
    """How much of its bound an error uses."""
    if allowed > 0:
        return error / allowed
    return math.inf if error > 0 else 0.0


def _kind(values: NDArray[np.float64]) -> NDArray[np.int8]:
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


# -- running models ----------------------------------------------------------------------------------------------------


def make_pictures(example: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """[count, ...]: the pictures of `example` [N, ...], then seeded normal noise with its mean, deviation and range, per channel (dimension 1)."""
    import torch

    missing = count - example.shape[0]
    if missing <= 0:
        return example[:count]
    values = example.detach().to("cpu", torch.float64)
    per_channel = values.transpose(0, 1).flatten(1) if example.dim() > 1 else values[None]
    rows = [channel[channel.isfinite()] for channel in per_channel]
    flat = torch.tensor([values.numel() < 2 or bool(values.min() == values.max()) for values in rows])
    # A constant channel says nothing of its range: standard normal noise instead.
    low, high, mean, std = (
        torch.tensor([default if is_flat else float(of(values)) for values, is_flat in zip(rows, flat, strict=True)], dtype=torch.float64)
        for of, default in ((torch.min, -math.inf), (torch.max, math.inf), (torch.mean, 0.0), (torch.std, 1.0))
    )
    noise = torch.randn((missing, *example.shape[1:]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shape = (-1, *(1 for _ in example.shape[2:])) if example.dim() > 1 else ()
    noise = (noise * std.view(shape) + mean.view(shape)).clamp(low.view(shape), high.view(shape))
    return torch.cat([example, noise.to(example.device, example.dtype)])


def flatten(outputs: Any) -> Outputs:
    """Tensors of any nesting (tuples, lists, dicts) as a flat list of float64 arrays."""
    from torch.utils import _pytree as pytree

    return [leaf.detach().cpu().double().numpy() for leaf in pytree.tree_leaves(outputs) if leaf is not None]


def _runner(reference: nn.Module, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Outputs]:
    import torch

    model = copy.deepcopy(reference).eval().to(device=device, dtype=dtype)

    def run(pictures: Tensor) -> Outputs:
        try:
            with torch.autocast(device.type, enabled=False):
                return flatten(model(pictures.to(dtype)))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise RequestError(f"the reference {type(reference).__name__} cannot run in {_name(dtype)} on {device}: {reason}") from error

    return run


def _run_slices(
    run: Callable[[Tensor], Outputs], pictures: Tensor, slices: Sequence[Slice], independent: bool | None
) -> tuple[tuple[Outputs, ...], bool]:
    """Outputs per slice, and whether one run of all pictures gave them; `independent` says whether it may (None: find out)."""
    total = max(stop for _, stop in slices)
    if independent is not False:
        whole = run(pictures[:total])
        if independent is None:
            independent = total == 1 or _agree(run(pictures[:1]), whole, total)
        if independent:
            return tuple([output[start:stop] for output in whole] for start, stop in slices), True
    return tuple(run(pictures[start:stop]) for start, stop in slices), False


def _agree(single: Outputs, whole: Outputs, total: int) -> bool:
    """Does the first picture alone give what it gives within the batch?"""
    if len(single) != len(whole):
        return False
    for alone, batch in zip(single, whole, strict=True):
        if batch.ndim < 1 or batch.shape[0] != total or alone.shape != batch[:1].shape:
            return False
        if not np.array_equal(_kind(alone), _kind(batch[:1])) or _relative_error(alone, batch[:1], np.isfinite(alone)) > _SAME_IN_FLOAT64:
            return False
    return True


def _dtype_of(candidate: object, outputs: Any) -> torch.dtype:
    import torch
    from torch.utils import _pytree as pytree

    own = getattr(candidate, "dtype", None)
    if isinstance(own, torch.dtype):
        return own
    return next((leaf.dtype for leaf in pytree.tree_leaves(outputs) if leaf.is_floating_point()), torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
