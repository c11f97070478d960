"""`create_model`: from a name to a reference model with random or loaded weights. Imports torch only when it is called."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastcnn.errors import RequestError
from fastcnn.models.registry import ModelInfo, ModelSpec, model_spec

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)


def create_model(
    name: str, weights: str | os.PathLike[str] | None = None, *, seed: int = 0, weights_set: str | None = None, **options: Any
) -> nn.Module:
    """Builds a reference model on the CPU, in eval mode, with a ModelInfo as its attribute `fastcnn_info`.

    Args:
        name: one of `list_models()`, in any capitals and with any separators.
        weights: None for random weights that keep activations at their size (`random_weights.draw_scaled_weights`); a
            weight file, safetensors or what `torch.save` wrote; the name of weights that this package holds ("mnist" for
            the MNIST models); or the name of torchvision weights ("IMAGENET1K_V1", "DEFAULT",
            "Inception_V3_Weights.IMAGENET1K_V1"), which torchvision downloads and caches.
        seed: of the random weights. The global random state is left as it was.
        weights_set: "ema" or "plain": which one to take of a file that holds the moving average of the weights beside them.
            By default the moving average, as timm does; a warning says so.
        options: keywords of the model, as torchvision spells them: num_classes, aux_logits, transform_input, dropout and so on.

    An option is taken from the caller; else from what the source says (a file that `fastcnn train` wrote for this model,
    torchvision's table); else it has its default. Auxiliary heads are left out where a file has none: inference does not run
    them. `fastcnn_info.options` holds what came out.

    Without `transform_input`, Inception-v3 and GoogLeNet take input in [-1, 1], and `fastcnn_info.preprocessing` says mean =
    std = 0.5; with it they take ImageNet's normalisation. A file of their weights that does not say for which input it was
    trained is looked at (`fastcnn.models.lineage`), and a warning says what had to be assumed.

    Raises UnknownNameError for an unknown model or weights name, RequestError for an option that the model lacks, and WeightsError
    for a file that is missing, damaged, or belongs to another model.
    """
    spec = model_spec(name)
    name = spec.name
    builder = spec.load_builder()
    chosen = _with_defaults(spec, options)
    if weights is None:
        from fastcnn.models.random_weights import SCALED, draw_scaled_weights

        if weights_set is not None:
            raise RequestError(f"weights_set={weights_set!r} is for a file that holds two sets of weights: give the file")
        model = _build_seeded(name, builder, chosen, seed)
        draw_scaled_weights(model, seed)
        _describe(model, spec, chosen, f"random (seed {seed}), {SCALED}")
        return model.eval()

    from fastcnn.models.weights import fill, open_weights

    source = open_weights(name, weights, weights_set)
    chosen |= {option: value for option, value in source.options.items() if option in chosen and option not in options}
    if "aux_logits" not in {*options, *source.options} and _lacks_heads(builder, source.tensors):
        _log.info("%s has no auxiliary heads, and %s is built without them: they are for training", source.what, name)
        chosen["aux_logits"] = False
    _check_classes(name, chosen)
    model = _build_empty(name, builder, chosen)
    _describe(model, spec, chosen, "not loaded")
    return fill(model, source, chosen=options).eval()


def create_untrained_model(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Builds a reference model as its architecture initialises it: where training starts.

    Training needs that start, and a network in eval mode does not: without statistics that belong to them, such weights
    take Inception-v3's logits to 1e11. `create_model` scales them for that reason. Otherwise like `create_model`: on the
    CPU, in eval mode, with a ModelInfo as its attribute `fastcnn_info`; raises UnknownNameError and RequestError.
    """
    spec = model_spec(name)
    builder = spec.load_builder()
    chosen = _with_defaults(spec, options)
    model = _build_seeded(name, builder, chosen, seed)
    _describe(model, spec, chosen, f"random (seed {seed})")
    return model.eval()


def _describe(model: nn.Module, spec: ModelSpec, options: dict[str, Any], origin: str) -> None:
    model.__dict__["fastcnn_info"] = ModelInfo(spec.name, options, origin, spec.input_size, spec.preprocessing_for(options))


def _build_seeded(name: str, builder: Callable[..., nn.Module], options: dict[str, Any], seed: int) -> nn.Module:
    import torch

    # default_generator, not torch.manual_seed, which would also reseed every CUDA device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return _build(name, builder, options)


def _build_empty(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    """The model with whatever was in memory: every tensor is to come from a file, and no time is spent on random ones."""
    import torch

    with torch.device("meta"):
        model = _build(name, builder, options)
    model.to_empty(device="cpu")
    for key, buffer in model.named_buffers():
        if key.endswith("num_batches_tracked"):  # older files lack it
            buffer.zero_()
    return model


def _lacks_heads(builder: Callable[..., nn.Module], tensors: Mapping[str, Any]) -> bool:
    """Whether the model that `builder` returns has auxiliary heads, and `tensors` none of them."""
    heads = getattr(inspect.signature(builder, eval_str=True).return_annotation, "aux_heads", ())
    return bool(heads) and not any(key.startswith(tuple(f"{head}." for head in heads)) for key in tensors)


def _with_defaults(spec: ModelSpec, options: dict[str, Any]) -> dict[str, Any]:
    """All options of the model: those given, and the defaults of the others."""
    defaults = spec.options()
    unknown = [option for option in options if option not in defaults]
    if unknown:
        raise RequestError(f"{spec.name} has no option {', '.join(map(repr, unknown))}; it has {', '.join(defaults)}")
    chosen = defaults | options
    _check_classes(spec.name, chosen)
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
