"""What is asked of a quantization, checked before any work starts. Importing this module does not import torch."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fastcnn.errors import RequestError, UnknownNameError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# A folder of pictures, a .npy or .npz file, a .json file of ranges; or preprocessed pictures.
Calibration: TypeAlias = "str | os.PathLike[str] | NDArray[Any] | Tensor"

SAMPLES = 300
MAX_ERROR, MAX_ACCURACY_DROP = 0.1, 0.02


class QuantizeFor(StrEnum):
    """Whose kernels a quantized graph is for: CPU runtimes (uint8 activations), TensorRT (symmetric int8), or whatever takes symmetric int8."""

    cpu = "cpu"
    tensorrt = "tensorrt"
    any = "any"


def parse_quantize_for(name: str) -> QuantizeFor:
    """A member of `QuantizeFor` by its name. Raises UnknownNameError for any other."""
    if name not in list(QuantizeFor):
        raise UnknownNameError("quantize_for", name, QuantizeFor)
    return QuantizeFor(name)


@dataclass(frozen=True)
class Limits:
    """What passes the accuracy gate.

    Attributes:
        max_error: bound on the relative L2 error over all pictures.
        max_accuracy_drop: the share of the pictures that may get another best class than the reference gives them, which bounds what accuracy
            can drop by; one picture may in any case.
    """

    max_error: float = MAX_ERROR
    max_accuracy_drop: float = MAX_ACCURACY_DROP

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < 1:
                raise RequestError(f"{name} is a share, above 0 and below 1; it is {value}")


@dataclass(frozen=True, kw_only=True)
class HalfRequest:
    """What float16's range is held against: the pictures of a calibration, of which `samples` are observed at most, beside the file's own.

    Attributes:
        calibration: what to observe, or the ranges that an earlier calibration saved, whose pictures it is then.
    """

    calibration: Calibration
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    @property
    def ranges_file(self) -> Path | None:
        """The file of ranges that the calibration is, where it is one."""
        return _ranges_file(self.calibration)


@dataclass(frozen=True, kw_only=True)
class Int8Request:
    """One quantization.

    Attributes:
        calibration: what to observe, or the ranges that an earlier calibration saved.
        samples: how many pictures of it to observe at most; a fifth as many are kept apart to judge by.
        quantize_for: whose kernels the graph is for.
        portable: keep weights to 7 bits, so that CPUs that add products of 8 bits in 16 (x86 without VNNI) do not saturate. By default where this
            CPU is one of those.
        limits: what passes.
        sensitivity: work out what each layer does to the error, even where nothing has to go back to float.
        save_ranges: a .json file for what the calibration found out.
        labelled: (pictures [N, …] float32, preprocessed; labels [N] int64) to judge by in place of those kept apart: the accuracy itself is then what
            may drop.
        labels_from: what those are, for the record.
    """

    calibration: Calibration
    samples: int = SAMPLES
    quantize_for: QuantizeFor = QuantizeFor.cpu
    portable: bool | None = None
    limits: Limits = field(default_factory=Limits)
    sensitivity: bool = False
    save_ranges: Path | None = None
    labelled: tuple[Tensor, Tensor] | None = None
    labels_from: str = "labelled pictures"

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if self.labelled is not None and (not len(self.labelled[0]) or len(self.labelled[0]) != len(self.labelled[1])):
            raise RequestError(f"labelled is pictures and as many labels; there are {len(self.labelled[0])} and {len(self.labelled[1])}")
        if self.save_ranges is not None and self.save_ranges.suffix.lower() != ".json":
            raise RequestError(f"ranges are saved as JSON, and by that name found again: {self.save_ranges} does not end in .json")

    @property
    def ranges_file(self) -> Path | None:
        """The file of ranges that the calibration is, where it is one."""
        return _ranges_file(self.calibration)


def _check_samples(samples: int) -> None:
    if samples < 2:
        raise RequestError(f"calibration needs at least 2 samples, {SAMPLES} by default; {samples} were asked for")


def _ranges_file(calibration: Calibration) -> Path | None:
    if not isinstance(calibration, (str, os.PathLike)):
        return None
    path = Path(calibration)
    return path if path.suffix.lower() == ".json" else None
