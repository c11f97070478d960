"""`create_model`: from a name to a reference model with random or loaded weights. Imports torch only when it is called."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastcnn.errors import RequestError
from fastcnn.models.registry import ModelInfo, ModelSpec, model_spec

if TYPE_CHECKING:
    from torch import nn


def create_model(name: str, weights: str | os.PathLike[str] | None = None, *, seed: int = 0, **options: Any) -> nn.Module:
    """Builds a reference model on the CPU, in eval mode, with a ModelInfo as its attribute `fastcnn_info`.

    Args:
        name: one of `list_models()`, in any capitals and with any separators.
        weights: None for random weights that keep activations at their size (`random_weights.draw_scaled_weights`); a
            .safetensors, .pth or .pt file; the name of weights that this package holds ("mnist" for the MNIST models); or
            the name of torchvision weights ("IMAGENET1K_V1", "DEFAULT", "Inception_V3_Weights.IMAGENET1K_V1"), which
            torchvision downloads and caches.
        seed: of the random weights. The global random state is left as it was.
        options: keywords of the model, as torchvision spells them: num_classes, aux_logits, transform_input, dropout and so on.

    An option is taken from the caller; else from the metadata of a .safetensors file that `fastcnn train` wrote for this model; else
    it has its default. `transform_input` alone is True with torchvision's weights, as in torchvision. A .pth file does not say: pass
    it. `fastcnn_info.options` holds what came out.

    Raises UnknownNameError for an unknown model or weights name, RequestError for an option that the model lacks, and WeightsError
    for a file that is missing, damaged, or belongs to another model.
    """
    spec = model_spec(name)
    name = spec.name
    builder = spec.load_builder()
    chosen = _with_defaults(name, builder, options)
    import torch

    from fastcnn.models.random_weights import SCALED, draw_scaled_weights
    from fastcnn.models.weights import load_weights, options_of

    if weights is None:
        model = _build_seeded(name, builder, chosen, seed)
        draw_scaled_weights(model, seed)
        origin = f"random (seed {seed}), {SCALED}"
    else:
        own = options_of(name, weights)
        chosen |= {option: value for option, value in own.items() if option in chosen and option not in options}
        _check_classes(name, chosen)
        with torch.device("meta"):  # every tensor comes from the file: do not spend time on random ones
            model = _build(name, builder, chosen)
        model.to_empty(device="cpu")
        for key, buffer in model.named_buffers():
            if key.endswith("num_batches_tracked"):  # older files lack it
                buffer.zero_()
        origin = "not loaded"

    _describe(model, spec, chosen, origin)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def create_untrained_model(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Builds a reference model as its architecture initialises it: where training starts.

    Training needs that start, and a network in eval mode does not: without statistics that belong to them, such weights
    take Inception-v3's logits to 1e11. `create_model` scales them for that reason. Otherwise like `create_model`: on the
    CPU, in eval mode, with a ModelInfo as its attribute `fastcnn_info`; raises UnknownNameError and RequestError.
    """
    spec = model_spec(name)
    builder = spec.load_builder()
    chosen = _with_defaults(name, builder, options)
    model = _build_seeded(name, builder, chosen, seed)
    _describe(model, spec, chosen, f"random (seed {seed})")
    return model.eval()


def _describe(model: nn.Module, spec: ModelSpec, options: dict[str, Any], origin: str) -> None:
    model.__dict__["fastcnn_info"] = ModelInfo(spec.name, options, origin, spec.input_size, spec.preprocessing)


def _build_seeded(name: str, builder: Callable[..., nn.Module], options: dict[str, Any], seed: int) -> nn.Module:
    import torch

    # default_generator, not torch.manual_seed, which would also reseed every CUDA device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return _build(name, builder, options)


def _with_defaults(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    """All options of the model: those given, and the defaults of the others."""
    defaults = {option: parameter.default for option, parameter in inspect.signature(builder).parameters.items()}
    unknown = [option for option in options if option not in defaults]
    if unknown:
        raise RequestError(f"{name} has no option {', '.join(map(repr, unknown))}; it has {', '.join(defaults)}")
    chosen = defaults | options
    _check_classes(name, chosen)
    return chosen


def _check_classes(name: str, options: dict[str, Any]) -> None:
    if not isinstance(options["num_classes"], int) or options["num_classes"] < 1:
        raise RequestError(f"num_classes of {name} must be a positive whole number, not {options['num_classes']!r}")


def _build(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    try:
        return builder(**options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise RequestError(f"{name} cannot be built with {given}: {error}") from error
