"""What was asked for, checked before any work starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.files import check_target
from fastcnn.preprocessing import Preprocessing

PRECISIONS = ("fp32", "fp16")
# What a file does of the preprocessing itself.
PREPROCESS = ("none", "normalize", "resize")
# Below 18 PyTorch lowers to 18 and onnx converts downwards, which fails on common operators; above 23 the runtimes are not there yet.
OPSETS = range(18, 24)
DEFAULT_OPSET = 20

# A file with a fixed batch is checked on at least this many pictures.
_CHECKED_PICTURES = 5


@dataclass(frozen=True)
class Request:
    """One export. `batch_size` None means dynamic, `preprocessing` None the model's own; `preprocess` is what the file does of it itself."""

    path: Path
    precision: str
    batch_size: int | None
    batch_sizes: tuple[int, ...]
    softmax: bool
    labels: tuple[str, ...] | None
    opset: int = DEFAULT_OPSET
    preprocess: str = "none"
    preprocessing: Preprocessing | None = None

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """The batches to check, as ranges of one picture set."""
        if self.batch_size is None:
            return tuple((0, size) for size in self.batch_sizes)
        runs = -(-_CHECKED_PICTURES // self.batch_size)
        return tuple((run * self.batch_size, (run + 1) * self.batch_size) for run in range(runs))


def check_request(
    path: str | os.PathLike[str],
    *,
    precision: str,
    batch_size: int | str,
    batch_sizes: Sequence[int],
    softmax: bool,
    labels: str | os.PathLike[str] | Sequence[str] | None,
    force: bool,
    opset: int | None = None,
    preprocess: str = "none",
    preprocessing: Preprocessing | None = None,
) -> Request:
    """Raises RequestError where the request cannot be met, before anything is computed or written."""
    if precision == "int8":
        raise RequestError("precision 'int8' is not supported yet; there are fp32 and fp16")
    if precision not in PRECISIONS:
        raise RequestError(f"unknown precision {precision!r}; there are {' and '.join(PRECISIONS)}")
    if opset is not None and (isinstance(opset, bool) or opset not in OPSETS):
        raise RequestError(f"ONNX opset {opset} cannot be written: give one from {OPSETS[0]} to {OPSETS[-1]}")
    if preprocess not in PREPROCESS:
        raise UnknownNameError("preprocess", preprocess, PREPROCESS)
    fixed = None if batch_size == "dynamic" else batch_size
    if fixed is not None and (isinstance(fixed, bool) or not isinstance(fixed, int) or fixed < 1):
        raise RequestError(f"batch_size is a whole number from 1, or 'dynamic'; it is {batch_size!r}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise RequestError(f"batch_sizes must be whole numbers from 1; they are {tuple(batch_sizes)}")
    return Request(
        path=check_target(Path(path), force),
        precision=precision,
        batch_size=fixed,
        batch_sizes=tuple(batch_sizes),
        softmax=softmax,
        labels=None if labels is None else read_labels(labels),
        opset=DEFAULT_OPSET if opset is None else opset,
        preprocess=preprocess,
        preprocessing=preprocessing,
    )


def read_labels(labels: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Names of the classes in the order of the outputs, from a list or from a UTF-8 text file with one a line. Raises RequestError."""
    if not isinstance(labels, (str, os.PathLike)):
        return tuple(str(label) for label in labels)
    try:
        text = Path(labels).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"label file {labels} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"label file {labels} is no UTF-8 text (byte {error.start})") from error
    return tuple(line.strip() for line in text.rstrip().splitlines())
