"""The model under test, and what several rows make from it."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcnn.errors import RequestError
from fastcnn.export.runtimes import open_file
from fastcnn.models import create_model
from fastcnn.models.opening import input_size_of, open_model
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.models.request import ModelRequest
from fastcnn.models.sources import Kind
from fastcnn.parity import Expected, expect, flatten
from fastcnn.precision import Precision
from fastcnn.quantization.gate import joined, judge
from fastcnn.quantization.request import Limits
from fastcnn.quantization.samples import draw
from fastcnn.runtimes.onnxruntime import open_session

# Pictures that rows in bfloat16 are judged by.
_JUDGED, _JUDGED_AT_ONCE = 32, 8
WEIGHTS = "random (seed 0), scaled so that no layer inflates its signal"


@dataclass(frozen=True)
class Accuracy:
    """On pictures that were not used for rounding.

    Attributes:
        relative_error: L2, over all of them.
        agreement: share of the pictures with the best class of the reference.
        bound: the largest relative error that still is this row's function.
    """

    relative_error: float
    agreement: float
    bound: float


class Subject:
    """Use it as a context manager: leaving it removes its files.

    Args:
        model: moved to `device` and to the dtype of `precision`, in place.
        calibration: of int8: a folder of pictures, or a .npy or .npz file of preprocessed ones.

    Attributes:
        model: the reference, in eval mode; rows that change it work on a copy.
        precision: what every row computes in.
        device: where it and its inputs are.
    """

    def __init__(self, model: nn.Module, precision: Precision = Precision.fp32, device: str = "cpu", calibration: Path | None = None) -> None:
        self.model = model.to(device=device, dtype=precision.dtype)
        self.precision, self.device, self._calibration = precision, torch.device(device), calibration
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._seconds: dict[Path, float] = {}
        self._judged: tuple[Tensor, Expected] | None = None

    def __enter__(self) -> Subject:
        self._folder = tempfile.TemporaryDirectory(prefix="fastcnn-bench-")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def folder(self, name: str) -> Path:
        """A new folder for a runtime's own files, which are removed with the subject."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root()))

    def plain_onnx(self, example: Tensor, batch_size: int | Literal["dynamic"] = "dynamic") -> tuple[Path, float]:
        """What `torch.onnx.export` makes of the reference, without any help from fastcnn, and the seconds that an earlier row spent on it.

        The input is that of the reference, in its dtype. On a CPU a dynamic batch does: on Inception-v3 at batches 1 and 8 neither
        onnxruntime nor OpenVINO was measurably faster on a fixed one.
        """

        def write(path: Path) -> None:
            # The exporter takes a batch of 1 for a constant.
            batch = torch.zeros(2 if batch_size == "dynamic" else batch_size, *example.shape[1:], dtype=example.dtype)
            shapes = ({0: torch.export.Dim.DYNAMIC},) if batch_size == "dynamic" else None
            model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(model, (batch,), path, dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False)

        return self._made_once(f"plain-{batch_size}.onnx", write)

    def fastcnn_onnx(self, example: Tensor, batch_size: int | Literal["dynamic"] = "dynamic") -> tuple[Path, float]:
        """What `fastcnn.export.export_onnx` makes of the reference, its own check included, and the seconds that an earlier row spent on it.

        The file takes and returns float32, whatever it computes in. Raises RequestError for bfloat16, which it cannot write.
        """

        def write(path: Path) -> None:
            from fastcnn.export import export_onnx

            precision = {Precision.tf32: "fp32", Precision.int8: "fp32"}.get(self.precision, self.precision.value)
            model = copy.deepcopy(self.model).to("cpu", torch.float32)
            sizes = (1, 2) if batch_size == "dynamic" else (batch_size,)
            export_onnx(model, path, example[:2].float().cpu(), precision=precision, batch_size=batch_size, batch_sizes=sizes)

        return self._made_once(f"fastcnn-{batch_size}.onnx", write)

    def fastcnn_int8_onnx(self, example: Tensor) -> tuple[Path, float]:
        """The same in 8 bits, one file for every runtime. Raises RequestError without calibration, and what `fastcnn.export.export_onnx` does."""
        from fastcnn.export import export_onnx

        if self._calibration is None:
            raise RequestError("a row in int8 needs pictures to calibrate with: --calibration DIR, or a .npy file of preprocessed ones")

        def write(path: Path) -> None:
            export_onnx(self.model, path, example[:2], precision="int8", calibration=self._calibration)

        return self._made_once("fastcnn-int8.onnx", write)

    def pictures(self, count: int, size: Sequence[int]) -> Tensor | None:
        """[count, *size] float32: calibration pictures as they go into the model, from the first one again where there are too few; None without any.

        Raises RequestError and InputError as a calibration would.
        """
        if self._calibration is None:
            return None
        drawn = draw(self._calibration, size, preprocessing_of(self.model), count).all()
        return torch.cat([drawn] * -(-count // len(drawn)))[:count].to(self.device)

    def accuracy_of(self, module: Callable[[Tensor], Tensor], size: Sequence[int], bound: float) -> Accuracy:
        """How far `module` is off the float64 reference on calibration pictures [N, *size]; `bound` is the most that passes."""
        if self._judged is None:
            pictures = self.pictures(_JUDGED, size)
            assert pictures is not None, "a run of several precisions has pictures"
            slices = [(start, start + _JUDGED_AT_ONCE) for start in range(0, _JUDGED, _JUDGED_AT_ONCE)]
            self._judged = pictures, expect(self.model, pictures, slices, dtype=torch.float32)
        pictures, expected = self._judged
        with torch.no_grad():
            outputs = joined([flatten(module(pictures[start:stop])) for start, stop in expected.slices])
        found = judge(outputs, joined(expected.reference), Limits(max_error=bound), runtime="")
        return Accuracy(found.relative_error, found.top1_agreement, bound)

    def _made_once(self, name: str, write: Callable[[Path], None]) -> tuple[Path, float]:
        path = self._root() / name
        if path in self._seconds:
            return path, self._seconds[path]
        start = time.perf_counter()
        write(path)
        self._seconds[path] = time.perf_counter() - start
        return path, 0.0

    def _root(self) -> Path:
        if self._folder is None:
            raise RuntimeError("Subject is a context manager: enter it first")
        return Path(self._folder.name)


class FileSubject(Subject):
    """An ONNX file in the place of a model: the rows that run plain ONNX files run this one, and its reference is ONNX Runtime without optimizations.

    That reference computes in float32 and not in float64: nothing here computes an ONNX file more exactly.

    Raises RequestError for a file that takes anything but one float32 tensor.
    """

    def __init__(self, path: Path) -> None:
        opened = open_file(path, "onnx")
        if opened.dtype != "float32" or not opened.shape:
            raise RequestError(f"{path} takes {opened.dtype}: a file that takes float32 can be timed")
        super().__init__(_Unoptimized(path))
        self.path, self.taken = path, opened.shape

    def plain_onnx(self, example: Tensor, batch_size: int | Literal["dynamic"] = "dynamic") -> tuple[Path, float]:
        """The file itself."""
        return self.path, 0.0


class _Unoptimized(nn.Module):
    """An ONNX file in ONNX Runtime as it stands, node by node, in float32 whatever the input's dtype."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        session = open_session(path, threads=torch.get_num_threads(), optimize=False)
        (source,) = session.get_inputs()
        self._batch = source.shape[0] if isinstance(source.shape[0], int) else None
        self._run: Callable[[NDArray[Any]], list[NDArray[Any]]] = lambda batch: session.run(None, {source.name: batch})[:1]
        self.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unoptimized:
        return self  # it holds nothing that a copy could change

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, …] → the first output, in the dtype of `x`; a file of a fixed batch runs as often as that takes."""
        count, size = len(x), self._batch or len(x)
        padded = torch.cat([x, x[-1:].expand(-count % size, *x.shape[1:])]).to(torch.float32)
        outputs = [torch.from_numpy(self._run(part.numpy())[0]) for part in padded.split(size)]
        return torch.cat(outputs)[:count].to(x.dtype)


def subject_of(
    request: ModelRequest, precision: Precision = Precision.fp32, device: str = "cpu", calibration: Path | None = None
) -> tuple[Subject, tuple[int, ...]]:
    """(what is asked for, ready to be timed, the sizes of one input).

    Raises what `open_model` raises; RequestError for an ONNX file on another device than the CPU, in another precision than its own,
    or of an input that nobody said the size of.
    """
    text = request.read()
    if text.kind is not Kind.onnx:
        model = open_model(request)
        return Subject(model, precision, device, calibration), input_size_of(model, request)
    if device != "cpu" or precision is not Precision.fp32:
        raise RequestError(f"{text.text} is timed on the CPU, in what it was written in: leave --device and --precision out, or name the model")
    subject = FileSubject(Path(text.text))
    sizes = subject.taken[1:] if request.input_shape is None else request.input_shape
    if any(size is None for size in sizes):
        raise RequestError(f"{text.text} leaves open how large its input is: give --input-shape, as in --input-shape 3x224x224")
    return subject, tuple(size for size in sizes if size is not None)


def model_under_test(name: str) -> nn.Module:
    """A model of the registry with the seeded random weights that WEIGHTS describes. Raises UnknownNameError."""
    return create_model(name)
