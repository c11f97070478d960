"""What a MODEL on the command line may be, told by its text alone: neither PyTorch nor anybody's code is imported for it.

| text | kind |
|---|---|
| `resnet50`, `ResNet50`, `inception-v3` | a model of the table |
| `torchvision:NAME`, `timm:NAME` | a classifier of that library |
| `package.module:callable`, `path/to/file.py:callable` | the user's code |
| `FILE.pt2` | a program of torch.export |
| `FILE.onnx` | a file that runtimes run, from which PyTorch gets no model |
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fastcnn.errors import RequestError, UnknownNameError, nearest_names
from fastcnn.models.registry import list_models, resolve, same_letters


class Kind(StrEnum):
    """What kind of thing a MODEL is."""

    own = "own"
    torchvision = "torchvision"
    timm = "timm"
    code = "code"
    program = "program"
    onnx = "onnx"
    weights = "weights"


_LIBRARIES = (Kind.torchvision, Kind.timm)
_OF_SUFFIX = {".pt2": Kind.program, ".onnx": Kind.onnx}
# Files that hold weights, or a module that is optimized already.
_NO_MODEL = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors", ".fast")
# How both libraries mark the functions that build their models.
_REGISTERED = re.compile(r"^@register_model(?:\(\))?\n(?:@.*(?:\n .*|\n\))*\n)*def (\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class ModelText:
    """A MODEL, taken apart.

    Attributes:
        text: as it was given; of a library's model with the name as the library spells it.
        name: what stands after the prefix: the library's name, the callable, the path of a file.
        where: of code, the module or file that holds the callable.
    """

    text: str
    kind: Kind
    name: str
    where: str = ""

    @property
    def stem(self) -> str:
        """What a file made from it is called by default."""
        if self.kind in (Kind.own, *_LIBRARIES):
            return self.name
        return self.name.rpartition(".")[2] if self.kind is Kind.code else Path(self.name).stem

    @property
    def title(self) -> str:
        """For messages and records: without the folders of this machine."""
        return f"{Path(self.where).name}:{self.name}" if self.kind is Kind.code else Path(self.text).name if self.kind in _FILES else self.text


_FILES = (Kind.program, Kind.onnx, Kind.weights)


def read_model_text(text: str) -> ModelText:
    """Takes a MODEL apart.

    Raises UnknownNameError, with the nearest names of ours and of the libraries, for a name that means no model, and
    RequestError for what cannot be one: a file that is not there, a Python file without the name of a function.
    """
    prefix, colon, name = text.partition(":")
    if colon and prefix.lower() in _LIBRARIES:
        kind = Kind(prefix.lower())
        name = _spelled_by(kind, name)
        return ModelText(f"{kind}:{name}", kind, name)
    suffix = Path(text).suffix.lower()
    if Path(text).is_file() or suffix in (*_OF_SUFFIX, *_NO_MODEL):
        return _file(text, suffix)
    where, colon, name = text.rpartition(":")
    if colon:
        return _code(text, where, name)
    if suffix == ".py" or os.sep in text:
        raise RequestError(f"{text} is a folder" if Path(text).is_dir() else f"{text} does not exist")
    own = resolve(text)
    if own is None:
        raise unknown_model(text)
    return ModelText(own, Kind.own, own)


def unknown_model(name: str) -> UnknownNameError:
    """The error for a name that is none of ours: it looks at the libraries' names too, and gives the prefix to type."""
    near = [f"{library}:{one}" for library in _LIBRARIES for one in library_names(library) if same_letters(name, one)]
    if not near:
        known = {one.lower(): f"{library}:{one}" for library in reversed(_LIBRARIES) for one in library_names(library)}
        known |= {one: one for one in list_models()}  # ours last: they stand for what the libraries have of the same name
        near = [known[one] for one in nearest_names(name.lower(), known)]
    hint = "`fastcnn list` shows the names; torchvision:NAME, timm:NAME, FILE.py:callable and a .pt2 file are models too"
    return UnknownNameError("model", name, list_models(), hint=hint, near=near)


@functools.cache
def library_names(library: str) -> tuple[str, ...]:
    """The classifiers of torchvision or timm, read from its source, since importing it takes seconds; none where it is not installed."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return ()
    files = sorted(Path(spec.origin).with_name("models").glob("*.py"))
    return tuple(name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8")))


def _spelled_by(library: Kind, name: str) -> str:
    """A library's model as the library spells it; timm's names may end in a tag, as in resnet50.a1_in1k."""
    if importlib.util.find_spec(library) is None:
        raise RequestError(f"{library}:{name} needs {library}, which is not installed: pip install {library}")
    bare, dot, tag = name.partition(".") if library is Kind.timm else (name, "", "")
    known = library_names(library)
    found = bare if bare in known else next((one for one in known if same_letters(bare, one)), None)
    if found is None:
        near = [f"{library}:{one}" for one in nearest_names(bare.lower(), known)]
        raise UnknownNameError(f"model of {library}", name, known, hint=f"{library} lists {len(known)} classifiers", near=near)
    return f"{found}{dot}{tag}"


def _file(text: str, suffix: str) -> ModelText:
    path = Path(text)
    if not path.is_file():
        raise RequestError(f"{text} is a folder" if path.is_dir() else f"{text} does not exist")
    if suffix == ".py":
        raise RequestError(f"{text} is a Python file: name the function or class in it that makes the model, as in {text}:build")
    kind = _OF_SUFFIX.get(suffix, Kind.weights)
    return ModelText(text, kind, text)


def _code(text: str, where: str, name: str) -> ModelText:
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise RequestError(f"{where} does not exist")
    elif not where or not all(part.isidentifier() for part in where.split(".")):
        raise RequestError(
            f"{text!r} names no model: what stands before the colon is torchvision, timm, a module as in package.module, or a .py file"
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise RequestError(f"{text!r} names no model: what stands after the colon is the name of a function, a class or a module")
    return ModelText(text, Kind.code, name, where)
