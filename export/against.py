"""Hold a file that others made against a model, or against another file: ONNX, TorchScript and `.pt2`, in the runtimes that run them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcnn.errors import FileFormatError, ParityError, RequestError
from fastcnn.export.description import read_any
from fastcnn.export.inspection import inspect_onnx
from fastcnn.export.runtimes import open_file, runtimes_for
from fastcnn.parity import Expected, Outputs, ParityReport, compare, expect, make_pictures
from fastcnn.parity.rules import softmax

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 5)
# Two float32 runtimes are held against each other: each may be off by the bound of one.
_BOTH_IN_FLOAT32 = 2e-5
_ONE_TENSOR = "a file that takes one tensor can be held against a model; `fastcnn verify FILE` checks one of fastcnn's from what is stored in it"


@dataclass(frozen=True)
class _Taken:
    """What a file takes and computes in; None for a free or unknown size, and an empty shape where nothing is known."""

    shape: tuple[int | None, ...]
    dtype: str
    precision: torch.dtype


def verify_against(
    path: str | os.PathLike[str],
    reference: nn.Module | Path,
    example: Tensor | None = None,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float | None = None,
) -> ParityReport:
    """Run a file in every runtime here that runs it, and compare its outputs with those of a reference on the same pictures.

    Args:
        path: an ONNX, TorchScript or `.pt2` file, whoever wrote it, that takes what the reference takes.
        reference: a model, which runs in float64; or an ONNX file, which runs in ONNX Runtime in float32.
        example: [N, …] for the reference's input; for a reference that is a file, its own shape by default.
        batch_sizes: what is checked, of a file that takes any batch.
        tolerance: bound on the relative L2 error, in place of the rule of the file's precision (`fastcnn.parity`).

    A file that gives probabilities is compared with the reference's softmax; a note of the report says so.

    Raises:
        RequestError: no such file, or the two do not take the same input or give the same number of outputs or classes.
        FileFormatError: a file that nothing here reads.
    """
    path = Path(path)
    format_, metadata = read_any(path)
    taken = _taken(path, format_, metadata)
    if isinstance(reference, Path):
        example = _example_of(reference) if example is None else example
    assert example is not None
    name = reference.name if isinstance(reference, Path) else _name(reference)
    if taken.shape:
        require_same_input(path, taken.shape[1:], name, tuple(example.shape[1:]))
    fixed = taken.shape[0] if taken.shape else None
    sizes = tuple(batch_sizes) if fixed is None else (fixed,)
    pictures = make_pictures(example.float(), max(sizes))
    slices = tuple((0, size) for size in sizes)
    batches = [np.ascontiguousarray(pictures[start:stop].numpy().astype(taken.dtype)) for start, stop in slices]
    results, failures = _run(path, format_, batches)
    if isinstance(reference, Path):
        bound = _BOTH_IN_FLOAT32 if tolerance is None and taken.precision == torch.float32 else tolerance
        expected = _expected_of_file(reference, [batch.astype(np.float32) for batch in batches], slices, taken.precision)
    else:
        bound, expected = tolerance, expect(reference, pictures, slices, dtype=taken.precision, widened=True)
    expected = _as_the_file_gives_it(path, name, next(iter(results.values()), None), expected)
    rows = [row for runtime, outputs in results.items() for row in compare(outputs, expected, tolerance=bound, runtime=runtime).rows]
    return ParityReport.of(rows, expected.dtype, failures, expected.notes)


def taken_sizes(path: Path) -> tuple[int | None, ...] | None:
    """The sizes of one input of a file; None for a free size, and None altogether where the file does not say (TorchScript). Errors as above."""
    shape = _taken(path, *read_any(path)).shape
    return shape[1:] or None


def _run(path: Path, format_: str, batches: Sequence[NDArray]) -> tuple[dict[str, list[Outputs]], list[str]]:
    """(runtime → outputs of each batch, why other runtimes gave none)."""
    results: dict[str, list[Outputs]] = {}
    failures = []
    for runtime, run in runtimes_for(format_).items():
        try:
            results[runtime] = run(path, batches)
        except ParityError as error:
            failures.append(str(error))
    return results, failures


def _taken(path: Path, format_: str, metadata: dict[str, Any] | None) -> _Taken:
    if metadata is not None and metadata.get("input", {}).get("preprocessing_in_file", "none") != "none":
        raise RequestError(
            f"{path} takes pixels, which it normalises itself, and a model takes normalised pictures: `fastcnn verify {path}` checks it "
            "from what is stored in it"
        )
    said = None if metadata is None else {"fp16": torch.float16}.get(str(metadata.get("precision")))
    if format_ == "onnx":
        opened = open_file(path, format_)
        if opened.inputs > 1:
            raise RequestError(f"{path} takes {opened.inputs} inputs: {_ONE_TENSOR}")
        dtype = {"tensor(float16)": "float16", "tensor(double)": "float64"}.get(str(opened.dtype), str(opened.dtype))
        if dtype not in ("float32", "float16", "float64"):
            raise RequestError(f"{path} takes {dtype}: a file that takes floating-point pictures can be held against a model")
        return _Taken(opened.shape or (), dtype, said or _computes_in(path) or getattr(torch, dtype))
    if format_ == "pt2":
        try:
            program = torch.export.load(path)
        except Exception as error:  # a damaged archive can raise anything
            raise FileFormatError(f"{path} is no program of torch.export: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        inputs = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise RequestError(f"{path} takes {len(inputs)} inputs: {_ONE_TENSOR}")
        held = [tensor.dtype for tensor in program.state_dict.values() if tensor.is_floating_point()] or [inputs[0].dtype]
        shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
        return _Taken(shape, str(inputs[0].dtype).removeprefix("torch."), said or min(held, key=lambda dtype: dtype.itemsize))
    return _Taken((), "float32", said or torch.float32)


def _computes_in(path: Path) -> torch.dtype | None:
    """float16 for an ONNX file with weights in it; None where the input's dtype says all."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    half = any(initializer.data_type == onnx.TensorProto.FLOAT16 for initializer in model.graph.initializer)
    return torch.float16 if half else None


def require_same_input(path: Path, wanted: Sequence[int | None], name: str, sizes: Sequence[int]) -> None:
    """Raises RequestError unless inputs of `sizes`, which the model `name` takes, are what the file takes; both without the batch."""
    if len(wanted) != len(sizes) or any(want is not None and want != got for want, got in zip(wanted, sizes, strict=True)):
        shown = "×".join("any" if size is None else str(size) for size in wanted)
        raise RequestError(f"{path} takes inputs of {shown}, and {name} of {'×'.join(map(str, sizes))}: the two do not belong together")


def _as_the_file_gives_it(path: Path, name: str, outputs: Sequence[Outputs] | None, expected: Expected) -> Expected:
    """The expectation in the file's own terms: its probabilities for the reference's logits.

    Raises RequestError where the two have another number of outputs or classes.
    """
    if outputs is None:
        return expected
    given, wanted = outputs[0], expected.reference[0]
    if len(given) != len(wanted):
        raise RequestError(f"{path} gives {len(given)} outputs, and {name} {len(wanted)}: they cannot be compared one by one")
    for number, (one, other) in enumerate(zip(given, wanted, strict=True)):
        if one.shape == other.shape:
            continue
        which = f"output {number + 1} of {path}" if len(given) > 1 else str(path)
        if one.ndim == other.ndim == 2 and len(one) == len(other):
            raise RequestError(
                f"{which} has {one.shape[1]} classes, and {name} {other.shape[1]}: give the model --num-classes {one.shape[1]}, and the weights that "
                "belong to it"
            )
        raise RequestError(f"{which} is {_by(one)} for a batch of {expected.slices[0][1]}, and {name} gives {_by(other)}")
    if not (_are_probabilities(given[0]) and not _are_probabilities(wanted[0])):
        return expected
    note = f"{path.name} gives probabilities: its outputs are held against the softmax of {name}'s"
    soft = [[softmax(run[0]), *run[1:]] for run in expected.reference]
    eager = None if expected.eager is None else tuple([softmax(run[0]), *run[1:]] for run in expected.eager)
    return Expected(expected.dtype, expected.slices, tuple(soft), eager, expected.independent, expected.ordinary, (*expected.notes, note))


def _example_of(path: Path) -> Tensor:
    """[1, …] of the shape that an ONNX file takes. Raises RequestError where it leaves it open."""
    (source, *others) = inspect_onnx(path).inputs
    if others or not source.shape or None in source.shape[1:]:
        raise RequestError(f"{path} leaves open what it takes: give --input-shape, as in --input-shape 3x224x224")
    sizes = [size or 1 for size in source.shape[1:]]
    return torch.rand((1, *sizes), generator=torch.Generator().manual_seed(0))


def _expected_of_file(path: Path, batches: Sequence[NDArray], slices: tuple[tuple[int, int], ...], precision: torch.dtype) -> Expected:
    opened = open_file(path, "onnx")
    fixed = opened.shape[0] if opened.shape else None
    if fixed is not None and any(len(batch) != fixed for batch in batches):
        raise RequestError(
            f"{path} takes a batch of {fixed} alone, and the other file is checked at {', '.join(str(len(batch)) for batch in batches)}"
        )
    outputs: list[Outputs] = [[np.asarray(output, np.float64) for output in opened.run(batch)] for batch in batches]
    note = f"{path.name} ran in ONNX Runtime in float32, not in float64"
    # Eager PyTorch is not at hand: the bound for float16 needs what it would give, and the file's own outputs stand for it.
    eager = None if precision in (torch.float32, torch.float64) else tuple(outputs)
    return Expected(str(precision).removeprefix("torch."), slices, tuple(outputs), eager, notes=(note,))


def _name(reference: nn.Module) -> str:
    return str(getattr(getattr(reference, "fastcnn_info", None), "name", type(reference).__name__))


def _are_probabilities(values: NDArray[np.float64]) -> bool:
    return values.ndim == 2 and bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-2))


def _by(array: NDArray) -> str:
    return "×".join(map(str, array.shape))
