"""What was asked for, checked before any work starts. Importing this module imports neither torch nor onnx."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.export.formats import Format
from fastcnn.export.preprocess import Preprocess
from fastcnn.export.profiles import Profile
from fastcnn.precision import Precision
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.request import HalfRequest, Int8Request

Labels = str | os.PathLike[str] | Sequence[str] | None
BatchSize = int | Literal["dynamic"]
# "min" spells out the default: the lowest that the graph needs.
Opset = int | Literal["min"] | None

# What files can compute in.
PRECISIONS = (Precision.fp32, Precision.fp16, Precision.int8)
# Below 13 operators differ in more than what `opsets` rewrites; above 23 the runtimes are not there yet.
OPSETS = range(13, 24)
BATCH_SIZES = (1, 2, 5)

# A file with a fixed batch is checked on at least this many pictures.
_CHECKED_PICTURES = 5


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """One export: everything that was asked for, but for the model and its example input.

    Attributes:
        path: of the file to write.
        precision: of weights and arithmetic, one of `PRECISIONS`.
        batch_size: the one size that the file accepts; None for any.
        batch_sizes: the sizes at which a file for any size is checked.
        softmax: return probabilities.
        labels: names of the classes; None for the model's own.
        force: overwrite an existing file.
        opset: of an ONNX file; None for the lowest of `OPSETS` that the graph needs.
        preprocess: what the file does of the preprocessing itself.
        picture_size: (height, width) of the pictures that a file takes which resizes them; None for any.
        preprocessing: from a picture to the model's input; None for the model's own.
        tolerance: bound on the relative L2 error in place of the rule of the precision; None for that rule.
        int8: what to calibrate with, and what passes; for that precision, and for no other.
        half: pictures to find with what float16 is too narrow for, beside those that the file is checked with; for float16, and for no other.
        profile: what shall read the file, where that is one runtime; `adapting.adapt` sets it, with the options that it needs.

    Raises RequestError where no file could be as asked.
    """

    format: Format
    path: Path
    precision: Precision = Precision.fp32
    batch_size: int | None = None
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    softmax: bool = False
    labels: tuple[str, ...] | None = None
    force: bool = False
    opset: int | None = None
    preprocess: Preprocess = Preprocess.none
    picture_size: tuple[int, int] | None = None
    preprocessing: Preprocessing | None = None
    tolerance: float | None = None
    int8: Int8Request | None = None
    half: HalfRequest | None = None
    profile: Profile | None = None

    def __post_init__(self) -> None:
        if self.opset is not None and not self.format.has_opset:
            raise RequestError(f"--opset belongs to ONNX, and this is a {self.format.name} export: leave it out")
        if self.opset is not None and (isinstance(self.opset, bool) or self.opset not in OPSETS):
            raise RequestError(
                f"ONNX opset {self.opset} cannot be written: give one from {OPSETS[0]} to {OPSETS[-1]}, or none for the lowest that the model needs"
            )
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise RequestError(f"batch_sizes must be whole numbers from 1; they are {self.batch_sizes}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise RequestError(f"tolerance is a bound on the relative error, above 0 and below 1; it is {self.tolerance}")
        self._check_picture_size()
        self._check_calibration()

    def _check_picture_size(self) -> None:
        if self.picture_size is None:
            return
        if self.preprocess is not Preprocess.resize:
            raise RequestError("--picture-size (picture_size=) says which pictures a file resizes: it goes with --preprocess resize")
        if len(self.picture_size) != 2 or any(isinstance(side, bool) or side < 1 for side in self.picture_size):
            raise RequestError(f"picture_size is a height and a width from 1; it is {self.picture_size}")
        if self.precision is Precision.int8:
            raise RequestError("--picture-size is not for int8: the pictures that such a file is judged by have the size of the model")

    def _check_calibration(self) -> None:
        asked = self.precision
        if (self.half is not None and asked is not Precision.fp16) or (self.int8 is not None and asked is not Precision.int8):
            raise RequestError(f"--calibration is for --precision int8 and fp16, and {asked.value} was asked for: leave one of them out")
        if asked is not Precision.int8:
            return
        if not self.format.has_int8:
            raise RequestError(f"int8 files are ONNX: a {self.format.title} file would compute in float32; give --onnx, or another --precision")
        if self.int8 is None:
            raise RequestError(
                "precision int8 needs --calibration (calibration=): a folder of pictures, a .npy or .npz file of preprocessed ones, or ranges.json"
            )
        if self.tolerance is not None:
            raise RequestError("tolerance is for the other precisions: an int8 file is held to --max-error (max_error=)")

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """The batches to check, as ranges of one picture set."""
        if self.batch_size is None:
            return tuple((0, size) for size in self.batch_sizes)
        runs = -(-_CHECKED_PICTURES // self.batch_size)
        return tuple((run * self.batch_size, (run + 1) * self.batch_size) for run in range(runs))


def parse_precision(precision: str) -> Precision:
    """One of `PRECISIONS` by its name, in capitals or not. Raises RequestError for any other."""
    name, known = precision.lower(), ", ".join(PRECISIONS)
    if name not in PRECISIONS:
        raise RequestError(f"unknown precision {precision!r}; there are {known}")
    return Precision(name)


def parse_batch_size(batch_size: BatchSize) -> int | None:
    """The one size that a file shall accept, or None for "dynamic". Raises RequestError for anything but that and whole numbers from 1."""
    if batch_size == "dynamic":
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise RequestError(f"batch_size is a whole number from 1, or 'dynamic'; it is {batch_size!r}")
    return batch_size


def parse_opset(opset: int | str | None) -> int | None:
    """The opset, or None for "min", the lowest that the graph needs. Raises RequestError for any other word."""
    if opset is None or opset == "min":
        return None
    if isinstance(opset, str):
        if not (opset.isascii() and opset.isdigit()):
            raise RequestError(f"--opset is a number from {OPSETS[0]} to {OPSETS[-1]}, or the word min; it is {opset!r}")
        return int(opset)
    return opset


def parse_picture_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from "480x640". Raises RequestError for anything else."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise RequestError(f"--picture-size is HEIGHTxWIDTH, such as 480x640; it is {text!r}")
    return int(sides[0]), int(sides[1])


def parse_preprocess(preprocess: str) -> Preprocess:
    """A member of `Preprocess` by its name. Raises UnknownNameError for any other."""
    if preprocess not in list(Preprocess):
        raise UnknownNameError("preprocess", preprocess, Preprocess)
    return Preprocess(preprocess)


def read_labels(labels: Labels) -> tuple[str, ...] | None:
    """Names of the classes in the order of the outputs, from a list or from a UTF-8 text file with one a line. Raises RequestError."""
    if labels is None:
        return None
    if not isinstance(labels, (str, os.PathLike)):
        return tuple(str(label) for label in labels)
    try:
        text = Path(labels).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"label file {labels} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"label file {labels} is no UTF-8 text (byte {error.start})") from error
    return tuple(line.strip() for line in text.rstrip().splitlines())
