"""The table of models, and `create_model`. Knows every model by name without importing torch."""

from __future__ import annotations

import fnmatch
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fastcnn.errors import RequestError, UnknownNameError

if TYPE_CHECKING:
    from torch import nn

Triple = tuple[float, float, float]
Stats = tuple[float, ...]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

_IMAGENET: tuple[Triple, Triple] = (IMAGENET_MEAN, IMAGENET_STD)
_UNIT_RANGE: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MNIST: tuple[Stats, Stats] = ((0.1307,), (0.3081,))
_CIFAR10: tuple[Triple, Triple] = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True)
class ModelSpec:
    """One row of the table.

    Attributes:
        name: what `create_model` takes.
        builder: "module:function"; imported only when the model is created. The function's keywords are the model's options.
        input_size: (channels, height, width).
        family: "imagenet" (state-dict compatible with a published model) or "small" (the models that the lectures train).
        num_classes: default width of the logits.
        description: one line.
        paper: where the architecture comes from.
        mean, std: per channel; the normalisation, after scaling to [0, 1], that the weights expect.
        torchvision_weights: the name of torchvision's weights enum, where it publishes weights for this model.
    """

    name: str
    builder: str
    input_size: tuple[int, int, int]
    family: Literal["imagenet", "small"]
    num_classes: int
    description: str
    paper: str
    mean: Stats
    std: Stats
    torchvision_weights: str | None = None

    def load_builder(self) -> Callable[..., nn.Module]:
        """Imports the module that defines the model (and torch) and returns its builder."""
        module, function = self.builder.split(":")
        return getattr(import_module(module), function)


@dataclass(frozen=True)
class ModelInfo:
    """What a created model is; stands on it as the plain attribute `fastcnn_info`.

    Attributes:
        name: its name in the table.
        options: every option that it was built with, defaults included: `create_model(name, **options)` builds it again.
        weights: where its weights come from, e.g. "random (seed 0)", "file: NAME.safetensors", "torchvision: IMAGENET1K_V1".
        input_size: (channels, height, width).
        mean, std: per channel; the normalisation, after scaling to [0, 1], that its input wants.
        categories: the names of the classes, where they are known.
        weights_sha256: None until someone asks `fastcnn.models.state_dict_sha256` and notes the answer here; hashing takes time.
    """

    name: str
    options: Mapping[str, Any]
    weights: str
    input_size: tuple[int, int, int]
    mean: Stats
    std: Stats
    categories: tuple[str, ...] | None = field(default=None, repr=False)
    weights_sha256: str | None = None


_SPECS: dict[str, ModelSpec] = {}


def _add(spec: ModelSpec) -> None:
    if spec.name in _SPECS:
        raise ValueError(f"model {spec.name!r} is registered twice: by {_SPECS[spec.name].builder} and by {spec.builder}")
    _SPECS[spec.name] = spec


def _add_imagenet(
    name: str,
    module: str,
    description: str,
    paper: str,
    weights: str | None,
    *,
    size: int = 224,
    normalisation: tuple[Triple, Triple] = _IMAGENET,
) -> None:
    mean, std = normalisation
    _add(ModelSpec(name, f"fastcnn.models.{module}:{name}", (3, size, size), "imagenet", 1000, description, paper, mean, std, weights))


def _add_small(name: str, description: str, paper: str, normalisation: tuple[Stats, Stats]) -> None:
    mean, std = normalisation
    input_size = (1, 28, 28) if normalisation is _MNIST else (3, 32, 32)
    _add(ModelSpec(name, f"fastcnn.models.{name}:{name}", input_size, "small", 10, description, paper, mean, std))


def _fill_table() -> None:
    _add_imagenet("alexnet", "alexnet", "AlexNet, one-tower version", "Krizhevsky 2014, arXiv:1404.5997", "AlexNet_Weights")
    for depth in (11, 13, 16, 19):
        paper = "Simonyan & Zisserman 2015, arXiv:1409.1556"
        _add_imagenet(f"vgg{depth}", "vgg", f"VGG-{depth}", paper, f"VGG{depth}_Weights")
        _add_imagenet(f"vgg{depth}_bn", "vgg", f"VGG-{depth} with BatchNorm", paper, f"VGG{depth}_BN_Weights")
    _add_imagenet(
        "googlenet", "googlenet", "GoogLeNet with BatchNorm, two auxiliary heads", "Szegedy et al. 2015, arXiv:1409.4842", "GoogLeNet_Weights"
    )
    _add_imagenet(
        "inception_v3", "inception_v3", "Inception-v3, one auxiliary head", "Szegedy et al. 2016, arXiv:1512.00567", "Inception_V3_Weights", size=299
    )
    # No torchvision twin; the weights that timm publishes take input in [-1, 1].
    _add_imagenet("inception_v4", "inception_v4", "Inception-v4", "Szegedy et al. 2017, arXiv:1602.07261", None, size=299, normalisation=_UNIT_RANGE)
    for depth in (18, 34, 50, 101, 152):
        _add_imagenet(f"resnet{depth}", "resnet", f"ResNet-{depth}", "He et al. 2016, arXiv:1512.03385", f"ResNet{depth}_Weights")
        _add_imagenet(f"preact_resnet{depth}", "preact_resnet", f"ResNet-{depth} with pre-activation", "He et al. 2016b, arXiv:1603.05027", None)
    for depth in (121, 161, 169, 201):
        _add_imagenet(f"densenet{depth}", "densenet", f"DenseNet-{depth}", "Huang et al. 2017, arXiv:1608.06993", f"DenseNet{depth}_Weights")
    for version in ("1_0", "1_1"):
        description = f"SqueezeNet {version.replace('_', '.')}"
        _add_imagenet(f"squeezenet{version}", "squeezenet", description, "Iandola et al. 2016, arXiv:1602.07360", f"SqueezeNet{version}_Weights")

    _add_small("simple_cnn", "two convolutions and a linear layer, for MNIST", "Kim, ML/DL for Everyone, lecture 10", _MNIST)
    _add_small("inception_mnist", "two small Inception blocks, for MNIST", "Kim, ML/DL for Everyone, lecture 10-1", _MNIST)
    _add_small("residual_mnist", "two residual blocks, for MNIST", "Liu, PyTorch Tutorial, lecture 11", _MNIST)
    _add_small("vgg_cifar10", "VGG of 8 convolutions, for CIFAR-10", "Modern CNNs, 2023; arXiv:1409.1556", _CIFAR10)
    _add_small("nin_cifar10", "Network in Network, for CIFAR-10", "Modern CNNs, 2023; Lin et al. 2014, arXiv:1312.4400", _CIFAR10)
    _add_small("googlenet_cifar10", "GoogLeNet without BatchNorm, two auxiliary heads, for CIFAR-10", "Modern CNNs, 2023; arXiv:1409.4842", _CIFAR10)
    _add_small("resnet18_cifar10", "ResNet-18, for CIFAR-10", "Modern CNNs, 2023; arXiv:1512.03385", _CIFAR10)


_fill_table()


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts vgg9 before vgg11: runs of digits compare as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a wildcard pattern, in natural order; an empty list where none does."""
    return sorted(fnmatch.filter(_SPECS, pattern), key=_natural_key)


def model_spec(name: str) -> ModelSpec:
    """The row of a model. Raises UnknownNameError, with the nearest names, for a name that is not in the table."""
    if name not in _SPECS:
        raise UnknownNameError("model", name, list_models(), hint="`fastcnn list` shows the names")
    return _SPECS[name]


def create_model(name: str, weights: str | os.PathLike[str] | None = None, *, seed: int = 0, **options: Any) -> nn.Module:
    """Builds a reference model on the CPU, in eval mode, with a ModelInfo as its attribute `fastcnn_info`.

    Args:
        name: one of `list_models()`.
        weights: None for random weights; a .safetensors, .pth or .pt file; or the name of torchvision weights ("IMAGENET1K_V1",
            "DEFAULT", "Inception_V3_Weights.IMAGENET1K_V1"), which torchvision downloads and caches.
        seed: of the random weights. The global random state is left as it was.
        options: keywords of the model, as torchvision spells them: num_classes, aux_logits, transform_input, dropout and so on.

    `transform_input` is taken from the caller; else from the metadata of a .safetensors file; else it is True with torchvision's
    weights, as in torchvision, and False otherwise. A .pth file does not say: pass it. `fastcnn_info.options` holds what came out.

    Raises UnknownNameError for an unknown model or weights name, RequestError for an option that the model lacks, and WeightsError
    for a file that is missing, damaged, or belongs to another model.
    """
    spec = model_spec(name)
    builder = spec.load_builder()
    chosen = _with_defaults(name, builder, options)
    import torch

    from fastcnn.models.weights import load_weights, transform_input_of, weights_name

    if weights is None:
        # default_generator, not torch.manual_seed, which would also reseed every CUDA device.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            model = _build(name, builder, chosen)
        origin = f"random (seed {seed})"
    else:
        if "transform_input" in chosen and "transform_input" not in options:
            chosen["transform_input"] = weights_name(weights) is not None or transform_input_of(weights)
        with torch.device("meta"):  # every tensor comes from the file: do not spend time on random ones
            model = _build(name, builder, chosen)
        model.to_empty(device="cpu")
        for key, buffer in model.named_buffers():
            if key.endswith("num_batches_tracked"):  # older files lack it
                buffer.zero_()
        origin = "not loaded"

    info = ModelInfo(name, chosen, origin, spec.input_size, spec.mean, spec.std)
    model.__dict__["fastcnn_info"] = info
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def _with_defaults(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    """All options of the model: those given, and the defaults of the others."""
    defaults = {option: parameter.default for option, parameter in inspect.signature(builder).parameters.items()}
    unknown = [option for option in options if option not in defaults]
    if unknown:
        raise RequestError(f"{name} has no option {', '.join(map(repr, unknown))}; it has {', '.join(defaults)}")
    chosen = defaults | options
    if not isinstance(chosen["num_classes"], int) or chosen["num_classes"] < 1:
        raise RequestError(f"num_classes of {name} must be a positive whole number, not {chosen['num_classes']!r}")
    return chosen


def _build(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    try:
        return builder(**options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise RequestError(f"{name} cannot be built with {given}: {error}") from error
