"""What an engine makes of a network."""

from __future__ import annotations

import copy
import functools
import logging
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from fuzz.network import Network, pictures
from torch import Tensor, nn
from torchlib import make_table_once

from fastcnn.engines import get_engine
from fastcnn.errors import CaptureError, FastcnnError, ParityError
from fastcnn.export import export_onnx
from fastcnn.export.runtimes import open_file
from fastcnn.optimization import Builder

ENGINES = ("torch", "onnxruntime", "openvino", "onnx")
KINDS = ("right", "refused", "differs", "unnamed", "wrong", "traceback", "crash")
SERVED = ("right", "refused", "differs")

# Of float32 against float64, beside twice what eager PyTorch errs by: an engine may sum in another order.
_TOLERANCE = 2e-5
_BATCHES = (3, 1)


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    kind: "right"; "refused", which names the operation; "differs", a refusal that does, of what the product's own check found wrong; "unnamed", a
        refusal that does not; "wrong"; "traceback"; "crash".
    detail: the message of an error, or the figures.
    key: what two failures of one cause have in common.
    """

    engine: str
    kind: str
    detail: str = ""
    key: str = ""

    @property
    def good(self) -> bool:
        """Whether a user was served, or told why not."""
        return self.kind in SERVED

    @property
    def is_news(self) -> bool:
        """Whether the smallest network of its kind is worth a look."""
        return self.kind not in ("right", "refused")


def judge(made: Network | Bundle, engines: tuple[str, ...], tell: Callable[[str], None] = lambda engine: None) -> Iterator[Verdict]:
    """One verdict per engine; `tell` hears which engine is next."""
    shape = made.recipe.shape
    builder: Builder | FastcnnError | None = None
    for engine in engines:
        tell(engine)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if engine == "onnx":
                    yield _judge_file(made, shape)
                    continue
                if builder is None:
                    builder = _builder(made, shape)
                if isinstance(builder, FastcnnError):
                    raise builder
                # Of networks side by side, each is looked at alone afterwards.
                yield _compare(engine, builder.build(get_engine(engine), locate=isinstance(made, Network)), made, shape)
            except ParityError as error:
                # The engine was wrong, and the check kept it from the user.
                named = re.search(r"from aten\.(\w+)", str(error))
                yield Verdict(engine, "differs" if named else "unnamed", str(error), f"{engine}: differs" + (f" from {named[1]} on" if named else ""))
            except FastcnnError as error:
                yield _refusal(engine, str(error), made)
            except Exception as error:  # what this is for
                frames = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in frames if "fastcnn" in frame.filename or "export" in frame.filename]
                place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
                line = " ".join(str(error).split())[:500]
                yield Verdict(engine, "traceback", f"{type(error).__name__}: {line} [{place}]", f"{engine}: {type(error).__name__} {place}")


def _builder(made: Network | Bundle, shape: tuple[int, ...]) -> Builder | FastcnnError:
    try:
        return Builder(made, pictures(shape, 2))
    except CaptureError as error:
        return error


def _judge_file(made: Network | Bundle, shape: tuple[int, ...]) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="fastcnn-fuzz-") as folder:
        path = Path(folder, "model.onnx")
        export_onnx(made, path, pictures(shape, 2))
        opened = open_file(path, "onnx", threads=1)
        return _compare("onnx", lambda x: [torch.from_numpy(array) for array in opened.run(x.numpy())], made, shape)


def _compare(engine: str, candidate: Callable[[Tensor], object], made: Network | Bundle, shape: tuple[int, ...]) -> Verdict:
    """The product checked itself on its own pictures; these are others, and other batches."""
    precise = copy.deepcopy(made).double()
    worst = 0.0
    for batch in _BATCHES:
        x = pictures(shape, batch, seed=batch)
        with torch.no_grad():
            wanted, eager, found = (_flat(run(pixels.clone())) for run, pixels in ((precise, x.double()), (made, x), (candidate, x)))
        for position, (truth, plain, output) in enumerate(zip(wanted, eager, found, strict=True)):
            if output.shape != truth.shape:
                return Verdict(engine, "wrong", f"output {position} has shape {list(output.shape)}, {list(truth.shape)} is right", f"{engine}: shape")
            norm = float(truth.norm()) or 1.0
            error, own = float((output - truth).norm()) / norm, float((plain - truth).norm()) / norm
            if not error <= max(_TOLERANCE, 2 * own):
                return Verdict(engine, "wrong", f"output {position} of a batch of {batch}: relative error {error:.3g}", f"{engine}: wrong")
            worst = max(worst, error)
    return Verdict(engine, "right", f"relative error {worst:.2g}")


def _flat(outputs: object) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _refusal(engine: str, message: str, made: Network | Bundle) -> Verdict:
    named = operation_named(message, made)
    if named is None or "\n" in message:
        return Verdict(engine, "unnamed", message, f"{engine}: {_shape_of(message)}")
    return Verdict(engine, "refused", message, f"{engine}: refused {named}")


def operation_named(message: str, made: Network | Bundle) -> str | None:
    """The operation that an error speaks of: PyTorch's, ONNX's behind the word "operation", or one that the network calls by name."""
    found = re.search(r"\b(?:aten|prims|quantized|torchvision)(?:\.|::)(\w+)", message) or re.search(r"\boperation (?!of\b)(\w+)", message)
    if found:
        return found[1]
    called = set(re.findall(r"[A-Za-z]\w+(?=\()", made.source)) - {"forward", "Net", "super", "Module"}
    return next((word for word in re.findall(r"\w+", message) if word in called), None)


def _shape_of(message: str) -> str:
    """A message without its numbers."""
    return re.sub(r"[\d.e+-]+", "#", message)[:90]


@functools.cache
def prepare_process() -> None:
    """One thread, no warnings; and the exporter's table of operations, which it makes from source in every export, once."""
    torch.set_num_threads(1)
    logging.getLogger("fastcnn").setLevel(logging.ERROR)
    make_table_once()


class Bundle(nn.Module):
    """Several networks on one input: what they have in common is done once."""

    def __init__(self, networks: list[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.recipe = networks[0].recipe
        self.source = "\n".join(made.source for made in networks)
        self.eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: [N, …] → the outputs of all, one after another."""
        return [output for network in self.networks for output in _flat(network(x.clone()))]
