"""Running a reference: in float64, and eagerly in the candidate's dtype, on seeded pictures.

`verify` runs everything; `expect` here and `compare` in `rules` are its two halves, for callers that hold several candidates against one reference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import RequestError
from fastcnn.inputs import Inputs, as_inputs, copies, cut
from fastcnn.parity.copying import copy_module
from fastcnn.parity.rules import (
    LARGEST_ORDINARY_INPUT,
    TF32,
    Expected,
    Outputs,
    ParityReport,
    Slice,
    compare,
    kinds_of,
    must_be_finite,
    relative_error,
)
from fastcnn.precision import exact_float32, float32_products

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Two float64 runs of one picture, alone and within a batch, differ by rounding only.
_SAME_IN_FLOAT64 = 1e-9


def verify(
    candidate: Callable[..., Any],
    reference: nn.Module,
    example_input: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> ParityReport:
    """Hold `candidate` against `reference` at several batch sizes.

    Args:
        candidate: takes a tensor [N, ...] of the example's dtype and device, or several; returns a tensor, or tuples, lists or dicts of tensors.
        reference: the model; a copy of it runs in evaluation mode, in float64, on the example's device. It is not changed.
        example_input: [N, ...], or a tuple of several; its pictures come first in every batch, seeded random ones of the same per-channel range and
            statistics follow.
        batch_sizes: sizes to check, each at least 1.
        dtype: what the candidate computes in: its `dtype` attribute by default, or else the dtype of its first output. A candidate whose attribute
            `allow_tf32` is true is held to the bound for TF32.
        tolerance: replaces the bound on the relative L2 error.
        seed: of the random pictures.

    Returns a report, passed or not; `report.require("…")` raises ParityError where it did not.

    Raises:
        RequestError: no batch size, one below 1, or a reference that cannot run in float64, whatever is done.
    """
    import torch

    if not batch_sizes or min(batch_sizes) < 1:
        raise RequestError(f"batch sizes must be whole numbers from 1; they are {tuple(batch_sizes)}")
    pictures = tuple(make_pictures(example, max(batch_sizes), seed=seed) for example in as_inputs(example_input))
    slices = tuple((0, size) for size in batch_sizes)
    with exact_float32(), torch.no_grad():
        outputs = []
        for start, stop in slices:
            # A copy: a candidate may write into its input, and it may give the same memory in every call.
            output = candidate(*copies(cut(pictures, start, stop)))
            dtype = dtype or _dtype_of(candidate, output)
            outputs.append(flatten(output))
    assert dtype is not None
    tf32 = dtype == torch.float32 and getattr(candidate, "allow_tf32", False) is True
    expected = expect(reference, pictures, slices, dtype=dtype, tf32=tf32)
    return compare(outputs, expected, tolerance=tolerance)


def expect(
    reference: nn.Module, inputs: Inputs, slices: Sequence[Slice], *, dtype: torch.dtype, tf32: bool = False, widened: bool = False
) -> Expected:
    """Run `reference` in float64, and eagerly in `dtype`, with TF32 products where `tf32`, on each slice of the inputs.

    A model that treats pictures independently, which is checked, runs once for all slices: float64 is dear.

    Args:
        widened: the candidate keeps in float32 what float16 is too narrow for. Where eager float16 gives NaN or infinity on an ordinary picture, it
            is no yardstick; an eighth of the error of eager bfloat16, which has the range and 3 bits less, stands for its own.

    Raises:
        RequestError: the reference cannot run in float64, or not in `dtype`.
    """
    import torch

    pictures = as_inputs(inputs)
    device = pictures[0].device
    with exact_float32(), torch.no_grad():
        precisely = _Runner(reference, torch.float64, device)
        precise, independent = _run_slices(precisely, pictures, slices, None)
    with float32_products(tf32=tf32), torch.no_grad():
        eagerly = _Runner(reference, dtype, device)
        eager, _ = _run_slices(eagerly, pictures, slices, independent)
    notes = tuple(dict.fromkeys((*precisely.notes, *eagerly.notes)))
    expected = Expected(TF32 if tf32 else _name(dtype), tuple(slices), precise, eager, independent, _ordinary(pictures, slices), notes)
    return _in_range(expected, reference, pictures) if widened and dtype == torch.float16 else expected


def _in_range(expected: Expected, reference: nn.Module, pictures: tuple[Tensor, ...]) -> Expected:
    """`expected` with outputs of eager float16 that lie in its range, as `expect` describes."""
    import torch

    assert expected.eager is not None
    lost = tuple([must_be_finite(expected, index, truth) for truth in outputs] for index, outputs in enumerate(expected.reference))
    if all(
        np.isfinite(native[where]).all() for run, of_run in zip(expected.eager, lost, strict=True) for native, where in zip(run, of_run, strict=True)
    ):
        return expected
    with exact_float32(), torch.no_grad():
        coarse, _ = _run_slices(_Runner(reference, torch.bfloat16, pictures[0].device), pictures, expected.slices, expected.independent)
    runs = zip(expected.eager, coarse, expected.reference, lost, strict=True)
    with np.errstate(invalid="ignore"):  # infinities, which `where` leaves out
        eager = tuple(
            [np.where(where, truth + (rough - truth) / 8, native) for native, rough, truth, where in zip(*run, strict=True)] for run in runs
        )
    return dataclasses.replace(expected, eager=eager)


def make_pictures(example: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """[count, ...]: the pictures of `example` [N, ...], then seeded normal noise with its mean, deviation and range, per channel (dimension 1)."""
    import torch

    missing = count - example.shape[0]
    if missing <= 0:
        return example[:count]
    if not example.is_floating_point():
        return torch.cat([example, _whole_numbers(example, missing, seed)])
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


def _whole_numbers(example: Tensor, count: int, seed: int) -> Tensor:
    """[count, ...]: what the example holds, drawn anew for each place. Values that it does not hold might be no index, or no pixel."""
    import torch

    values = example.detach().flatten()
    drawn = torch.randint(max(1, len(values)), (count, *example.shape[1:]), generator=torch.Generator().manual_seed(seed))
    return values[drawn.to(values.device)] if len(values) else example.new_empty((count, *example.shape[1:]))


def flatten(outputs: Any) -> Outputs:
    """Tensors of any nesting (tuples, lists, dicts, dataclasses) as a flat list of float64 arrays, which share memory with nothing."""
    import torch

    return [leaf.detach().to("cpu", torch.float64, copy=True).numpy() for leaf in _leaves(outputs)]


def _leaves(outputs: Any) -> Iterator[Tensor]:
    from torch.utils import _pytree as pytree

    for leaf in pytree.tree_leaves(outputs):
        if dataclasses.is_dataclass(leaf):
            yield from _leaves([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        elif leaf is not None:
            yield leaf


class _Runner:
    """Runs a copy of the reference in `dtype`; `notes` says where it had to be made to.

    A model that cannot run in another dtype as it stands, because it names one in its code or holds tensors that `.to` does not reach, runs with
    each operation's floating-point operands and results brought to `dtype`; so does one that makes real numbers of integers, in whatever dtype.
    """

    def __init__(self, reference: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._name, self._dtype, self._device = type(reference).__name__, dtype, device
        self._model = copy_module(reference).eval().to(device=device, dtype=dtype)
        self._forced: bool | None = None
        self._takes_integers = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the verdict should know of how the reference ran."""
        if not self._forced or self._takes_integers:
            return ()
        return (f"{self._name} does not run in {_name(self._dtype)} by itself: its reference had every operation brought to {_name(self._dtype)}",)

    def __call__(self, pictures: tuple[Tensor, ...]) -> Outputs:
        failures = (RuntimeError, TypeError, NotImplementedError)
        self._takes_integers = not all(one.is_floating_point() for one in pictures)
        first = self._takes_integers if self._forced is None else self._forced
        try:
            outputs = self._run(pictures, forced=first)
        except failures as error:
            if self._forced is not None:
                raise self._refusal(error) from error
            try:
                outputs = self._run(pictures, forced=not first)
            except failures:
                raise self._refusal(error) from error
            first = not first
        self._forced = first
        return outputs

    def _run(self, pictures: tuple[Tensor, ...], *, forced: bool) -> Outputs:
        import torch

        from fastcnn.parity.one_dtype import OneDtype

        values = copies(pictures, self._dtype)
        with torch.autocast(self._device.type, enabled=False), OneDtype(self._dtype) if forced else nullcontext():
            outputs = self._model(*values)
        return flatten(outputs)  # outside: in float64, which NumPy has, as it has no bfloat16

    def _refusal(self, error: BaseException) -> RequestError:
        reason = str(error).strip().partition("\n")[0]
        return RequestError(f"the reference {self._name} cannot run in {_name(self._dtype)} on {self._device}: {reason}")


def _run_slices(
    run: Callable[[tuple[Tensor, ...]], Outputs], pictures: tuple[Tensor, ...], slices: Sequence[Slice], independent: bool | None
) -> tuple[tuple[Outputs, ...], bool]:
    """Outputs per slice, and whether one run of all pictures gave them; `independent` says whether it may (None: find out)."""
    total = max(stop for _, stop in slices)
    if total == 1:
        # Nothing to cut: outputs without a batch dimension come as they are.
        return (run(cut(pictures, 0, 1)),) * len(slices), True
    if independent is not False:
        whole = run(cut(pictures, 0, total))
        if independent is None:
            independent = _agree(run(cut(pictures, 0, 1)), whole, total)
        if independent:
            return tuple([output[start:stop] for output in whole] for start, stop in slices), True
    return tuple(run(cut(pictures, start, stop)) for start, stop in slices), False


def _agree(single: Outputs, whole: Outputs, total: int) -> bool:
    """Does the first picture alone give what it gives within the batch?"""
    if len(single) != len(whole):
        return False
    for alone, batch in zip(single, whole, strict=True):
        if batch.ndim < 1 or batch.shape[0] != total or alone.shape != batch[:1].shape:
            return False
        if not np.array_equal(kinds_of(alone), kinds_of(batch[:1])) or relative_error(alone, batch[:1], np.isfinite(alone)) > _SAME_IN_FLOAT64:
            return False
    return True


def _ordinary(inputs: tuple[Tensor, ...], slices: Sequence[Slice]) -> tuple[NDArray[np.bool_], ...]:
    """Which pictures of each slice hold nothing but finite values of sensible size."""
    ordinary = np.ones(len(inputs[0]), dtype=bool)
    for pictures in inputs:
        if pictures.is_floating_point() and pictures.numel():
            # A NaN makes the comparison false.
            ordinary &= (pictures.detach().reshape(len(pictures), -1).abs().amax(1).double() <= LARGEST_ORDINARY_INPUT).cpu().numpy()
    return tuple(ordinary[start:stop] for start, stop in slices)


def _dtype_of(candidate: object, outputs: Any) -> torch.dtype:
    import torch

    own = getattr(candidate, "dtype", None)
    if isinstance(own, torch.dtype):
        return own
    return next((leaf.dtype for leaf in _leaves(outputs) if leaf.is_floating_point()), torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
