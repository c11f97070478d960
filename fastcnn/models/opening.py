"""From a `ModelRequest` to a module, whoever wrote it: `open_model` is the one place that knows all kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.errors import RequestError
from fastcnn.models.arguments import parse_arguments
from fastcnn.models.creation import create_model
from fastcnn.models.foreign import Found, program, timm_model, torchvision_model, users_model
from fastcnn.models.foreign_weights import foreign_weights
from fastcnn.models.registry import ModelInfo, model_spec
from fastcnn.models.request import ModelRequest, SourceInfo
from fastcnn.models.sources import Kind, ModelText

_OPENERS: dict[Kind, Callable[[ModelText, ModelRequest], Found]] = {
    Kind.torchvision: torchvision_model,
    Kind.timm: timm_model,
    Kind.code: users_model,
    Kind.program: program,
}


def open_model(request: ModelRequest) -> nn.Module:
    """Builds the model that is asked for, on the CPU and in eval mode, with a ModelInfo or a SourceInfo as its attribute `fastcnn_info`.

    Code of the user's, as in `net.py:build`, is run, which the log says.

    Raises UnknownNameError for a name that means no model, RequestError for a file from which PyTorch gets none (ONNX), for an
    option that the model lacks, code that fails, and an input that nobody said the size of; WeightsError for weights that do not fit.
    """
    text = request.read_model()
    if text.kind is Kind.own:
        return create_model(text.name, request.weights, seed=request.seed, weights_set=request.weights_set, **own_options(request))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(request.seed)
        found = _OPENERS[text.kind](text, request)
    model = found.model.eval() if found.model.training else found.model
    size = _input_size(text, request, found, model)
    loaded = foreign_weights(model, found, text, request, size)
    known = loaded.preprocessing
    if known is not None:
        known = known.at_size(*size[1:]) if len(size) == 3 and known.channel_count == size[0] else None
    model.__dict__["fastcnn_info"] = SourceInfo(text.title, found.options, loaded.origin, size, known, loaded.categories)
    return model


def own_options(request: ModelRequest) -> dict[str, Any]:
    """The options of a model of the table, as keywords of `create_model`.

    Raises RequestError for a text that does not fit the builder's signature, or an option that is given in two ways.
    """
    given = {"num_classes": request.num_classes, "transform_input": request.transform_input}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if request.model_args:
        spec = model_spec(request.model)
        arguments = parse_arguments(spec.load_builder(), request.model_args, spec.name)
        twice = [name for name in arguments if name in options]
        if twice:
            raise RequestError(f"{twice[0]} is given both as an option and as --model-arg: give it once")
        options |= arguments
    return options


def input_size_of(model: nn.Module, request: ModelRequest) -> tuple[int, ...]:
    """The sizes of one input, without the batch, of what `open_model` returned for the request."""
    info: ModelInfo | SourceInfo = model.fastcnn_info  # type: ignore[assignment]
    size = tuple(info.input_size)
    if isinstance(info, ModelInfo):
        if request.input_shape is not None:
            size = request.input_shape
        elif request.image_size is not None:
            size = (size[0], request.image_size, request.image_size)
    return size


def example_input(model: nn.Module, request: ModelRequest, batch_size: int = 1) -> Tensor:
    """[batch_size, …] of the model's input size, from [0, 1), seeded."""
    return torch.rand((batch_size, *input_size_of(model, request)), generator=torch.Generator().manual_seed(0))


def _input_size(text: ModelText, request: ModelRequest, found: Found, model: nn.Module) -> tuple[int, ...]:
    if request.input_shape is not None:
        return request.input_shape
    size = found.input_size
    if request.image_size is not None:
        channels = size[0] if size else next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
        return (channels, request.image_size, request.image_size)
    if size is None:
        raise RequestError(f"{text.text} does not say what its input is: give --input-shape, as in --input-shape 3x224x224")
    return size
