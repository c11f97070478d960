"""Models that are none of ours: of torchvision and timm, of the user's code, of a torch.export program."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastcnn.archives import read_directory
from fastcnn.errors import FileFormatError, RequestError
from fastcnn.limits import parse_json
from fastcnn.models.arguments import parse_arguments
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.models.request import ModelRequest
from fastcnn.models.sources import ModelText
from fastcnn.preprocessing import INTERPOLATIONS, Preprocessing
from fastcnn.text import first_line

_log = logging.getLogger(__name__)

Size = tuple[int, ...]


@dataclass
class Found:
    """A model from elsewhere as it was built, with weights of its own making.

    Attributes:
        options: the keywords that it was built with.
        input_size: of one input without the batch, where the model or its library says it.
        preprocessing: the declared one of its published weights, or its own.
        weights: what its weights are: empty where they are fresh random ones.
    """

    model: nn.Module
    options: Mapping[str, Any] = field(default_factory=dict)
    input_size: Size | None = None
    preprocessing: Preprocessing | None = None
    weights: str = ""


def torchvision_model(text: ModelText, request: ModelRequest) -> Found:
    """A classifier of torchvision, freshly initialised; input and preprocessing are those of its default weights."""
    import torchvision

    build = torchvision.models.get_model_builder(text.name)
    options = _keywords(build, request, text.text)
    if text.name in ("inception_v3", "googlenet"):
        options.setdefault("init_weights", False)  # minutes of work, replaced below
    model = _call(build, options, text.text)
    presets = torchvision.models.get_model_weights(text.name).DEFAULT.transforms()
    known = Preprocessing.from_torchvision(presets)
    if hasattr(model, "transform_input"):  # which input it takes depends on it: see fastcnn.models.lineage
        known = known if model.transform_input else _unit_range(known)
    options.pop("init_weights", None)
    return Found(model, options, known.output_shape, known)


def timm_model(text: ModelText, request: ModelRequest) -> Found:
    """A classifier of timm, freshly initialised; input and preprocessing are those of its pretrained configuration."""
    import timm

    def build(**keywords: Any) -> nn.Module:
        return timm.create_model(text.name, pretrained=False, **keywords)

    options = _keywords(build, request, text.text)
    model = _call(build, options, text.text)
    size, known = described_by_timm(model)
    return Found(model, options, size, known)


def users_model(text: ModelText, request: ModelRequest) -> Found:
    """What the user's function or class makes, or the module of that name; runs the user's code, and says so."""
    _log.info("runs the code of %s", text.text)
    what: Any = _import(text)
    for part in text.name.split("."):
        if not hasattr(what, part):
            callables = [name for name, value in vars(what).items() if callable(value) and getattr(value, "__module__", None) == what.__name__]
            hint = f"it has {', '.join(callables[:8])}" if callables else "it holds no function or class"
            raise RequestError(f"{text.where} has no {part!r}; {hint}")
        what = getattr(what, part)
    if isinstance(what, nn.Module):
        if request.num_classes is not None or request.transform_input is not None or request.model_args:
            raise RequestError(f"{text.text} is a finished module, which takes no options: name a function or a class")
        model, options = what, dict[str, Any]()
    else:
        if not callable(what):
            raise RequestError(f"{text.text} is a {type(what).__name__}: name a function or a class that makes a model, or a module")
        options = _keywords(what, request, text.text)
        model = _call(what, options, text.text)
    size, known = described_by_timm(model)
    example = getattr(model, "example_input_array", None)  # as Lightning calls it
    if size is None and isinstance(example, Tensor):
        size = tuple(example.shape[1:])
    return Found(model, options, size, preprocessing_of(model) or known, f"as {text.title} makes them (seed {request.seed})")


def program(text: ModelText, request: ModelRequest) -> Found:
    """The module of a torch.export program, for any batch, whatever batch it was exported for.

    Raises FileFormatError for a file that torch.export does not read, RequestError for a program of several inputs.
    """
    path = Path(text.name)
    try:
        described = _described(path)
        with warnings.catch_warnings(action="ignore"):
            exported = torch.export.load(path)
            module = exported.module(check_guards=False)
    except Exception as error:  # a damaged archive can raise anything
        raise FileFormatError(f"{path} is no program of torch.export: {first_line(error)}") from error
    inputs = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in exported.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() < 1:
        raise RequestError(f"{path} takes {len(inputs)} inputs; a model on the command line takes one tensor with the batch first")
    batch, *sizes = inputs[0].shape
    if isinstance(batch, int):
        _log.info("%s was exported for a batch of %d alone: its operations are taken for any batch", path.name, batch)
    size = tuple(sizes) if all(isinstance(one, int) for one in sizes) else None
    return Found(_Program(module, exported.call_spec.out_spec), {}, size, described, f"of {path.name}")


class _Program(nn.Module):
    """A plain module around the program's graph: that of torch.export refuses `eval` and checks what its example was like."""

    def __init__(self, module: fx.GraphModule, packing: Any) -> None:
        super().__init__()
        graph = fx.Graph()
        graph.output(graph.graph_copy(module.graph, {}))
        self.graph_module, self._packing = fx.GraphModule(module, graph), packing
        self.eval()

    def forward(self, x: Tensor) -> Any:
        """x: [N, …] → what the program returns."""
        return torch.utils._pytree.tree_unflatten(self.graph_module(x), self._packing)


def described_by_timm(model: nn.Module) -> tuple[Size | None, Preprocessing | None]:
    """(input size, preprocessing) of a model with a configuration as timm's models have; None for what is not there."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(config, Mapping) or not isinstance(config.get("input_size"), (tuple, list)):
        return None, None
    channels, height, width = config["input_size"]
    layer = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if layer is not None and layer.groups == 1 and layer.in_channels in (1, 3):  # in_chans=1 changes the network, not the configuration
        channels = layer.in_channels
    if channels != config["input_size"][0] or not config.get("mean") or not config.get("std"):
        return (channels, height, width), None
    return (channels, height, width), _timm_preprocessing(config, height, width)


def _timm_preprocessing(config: Mapping[str, Any], height: int, width: int) -> Preprocessing | None:
    """As timm's transforms for evaluation: resize by 1 / crop_pct, crop in the middle; None for a mode that has no such description."""
    interpolation, share = str(config.get("interpolation") or "bilinear"), float(config.get("crop_pct") or 0.875)
    mode = config.get("crop_mode") or "center"
    if interpolation not in INTERPOLATIONS or mode not in ("center", "squash"):
        return None
    exact = mode == "squash" or height != width
    resize = (math.floor(height / share), math.floor(width / share)) if exact else math.floor(height / share)
    return Preprocessing(
        "RGB" if len(config["mean"]) == 3 else "L", resize, (height, width), interpolation, mean=tuple(config["mean"]), std=tuple(config["std"])
    )


def _unit_range(known: Preprocessing) -> Preprocessing:
    return replace(known, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _described(path: Path) -> Preprocessing | None:
    """Of a file that fastcnn exported and that takes normalised pictures, the preprocessing that it describes. Raises ValueError for no archive."""
    with path.open("rb") as file:
        directory = read_directory(file)
        metadata = parse_json(directory.read(file, "extra/fastcnn")) if "extra/fastcnn" in directory.records else {}
    entry = metadata.get("input") or {}
    return preprocessing_of(metadata) if entry.get("preprocessing_in_file") == "none" else None


# -- calling what makes a model ----------------------------------------------------------------------------------------


def _keywords(build: Callable[..., Any], request: ModelRequest, who: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError) as error:
        raise RequestError(f"{who} has no signature that Python can read: give a function of your own around it") from error
    options = parse_arguments(build, request.model_args, who) if request.model_args else {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = [parameter.name for parameter in parameters]
    for name, value in (("num_classes", request.num_classes), ("transform_input", request.transform_input)):
        if value is None:
            continue
        if name not in names and not takes_any:
            raise RequestError(f"{who} takes no {name}; it takes {', '.join(names) or 'nothing'}")
        if name in options:
            raise RequestError(f"{name} is given both as an option and as --model-arg: give it once")
        options[name] = value
    return options


def _call(build: Callable[..., Any], options: Mapping[str, Any], who: str) -> nn.Module:
    try:
        model = build(**options)
    except Exception as error:  # somebody's code can raise anything
        raise RequestError(f"{who} failed{_given(options)}: {first_line(error)}{_place(error)}") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"{who} makes a {type(model).__name__}: a torch.nn.Module was expected")
    return model


def _import(text: ModelText) -> ModuleType:
    path = Path(text.where)
    # Where Python itself would look: beside a script that it runs, and in the current folder for a module.
    folder = str(path.resolve().parent) if path.suffix == ".py" else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if path.suffix != ".py":
            return importlib.import_module(text.where)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look a class's module up
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody's code can raise anything
        raise RequestError(f"{text.where} cannot be imported: {first_line(error)}{_place(error)}") from error
    return module


def _given(options: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{name}={value!r}' for name, value in options.items())}" if options else ""


def _place(error: BaseException) -> str:
    """Where in the user's code, as " (net.py:7)"; empty where no line of it is known."""
    library = str(Path(inspect.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    users = [frame for frame in frames if not frame.filename.startswith(("<", library)) and "-packages" not in frame.filename]
    return f" ({Path(users[-1].filename).name}:{users[-1].lineno})" if users else ""
