"""The table of models. Knows every model by name without importing torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from fastcnn.errors import UnknownNameError
from fastcnn.preprocessing import Preprocessing, Stats

if TYPE_CHECKING:
    from torch import nn

Triple = tuple[float, float, float]

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
        preprocessing: from a picture to the input that the weights expect; torchvision's own where it publishes weights.
        torchvision_weights: the name of torchvision's weights enum, where it publishes weights for this model.
        shipped_weights: names of the weights that this package holds.
    """

    name: str
    builder: str
    input_size: tuple[int, int, int]
    family: Literal["imagenet", "small"]
    num_classes: int
    description: str
    paper: str
    preprocessing: Preprocessing
    torchvision_weights: str | None = None
    shipped_weights: tuple[str, ...] = ()

    @property
    def mean(self) -> Stats:
        """Per channel, after scaling to [0, 1]."""
        return self.preprocessing.mean

    @property
    def std(self) -> Stats:
        """Per channel, after scaling to [0, 1]."""
        return self.preprocessing.std

    def preprocessing_for(self, options: Mapping[str, Any]) -> Preprocessing:
        """From a picture to the input of the model built with these options.

        `preprocessing` is for published weights as torchvision builds their model. Inception-v3 and GoogLeNet have
        `transform_input` there, which takes ImageNet's normalisation to [-1, 1], the range that the network itself was
        trained on. Without it, [-1, 1] is what the model takes: mean = std = 0.5.
        """
        if options.get("transform_input", True):
            return self.preprocessing
        mean, std = _UNIT_RANGE
        return replace(self.preprocessing, mean=mean, std=std)

    def options(self) -> dict[str, Any]:
        """The options that the model can be built with, and their defaults. Imports torch."""
        return {name: parameter.default for name, parameter in signature(self.load_builder()).parameters.items()}

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
        weights: where its weights come from, e.g. "random (seed 0), scaled so that …", "file: NAME.safetensors", "torchvision: IMAGENET1K_V1".
        input_size: (channels, height, width).
        preprocessing: from a picture to the input that its weights expect.
        categories: the names of the classes, where they are known.
        weights_sha256: None until someone asks `fastcnn.models.state_dict_sha256` and notes the answer here; hashing takes time.
    """

    name: str
    options: Mapping[str, Any]
    weights: str
    input_size: tuple[int, int, int]
    preprocessing: Preprocessing
    categories: tuple[str, ...] | None = field(default=None, repr=False)
    weights_sha256: str | None = None

    @property
    def mean(self) -> Stats:
        """Per channel, after scaling to [0, 1]."""
        return self.preprocessing.mean

    @property
    def std(self) -> Stats:
        """Per channel, after scaling to [0, 1]."""
        return self.preprocessing.std


_SPECS: dict[str, ModelSpec] = {}


def _add(spec: ModelSpec) -> None:
    if spec.name in _SPECS:
        raise ValueError(f"model {spec.name!r} is registered twice: by {_SPECS[spec.name].builder} and by {spec.builder}")
    _SPECS[spec.name] = spec


def _imagenet_input(
    size: int = 224, resize: int = 256, interpolation: str = "bilinear", normalisation: tuple[Triple, Triple] = _IMAGENET
) -> Preprocessing:
    mean, std = normalisation
    return Preprocessing("RGB", resize, (size, size), interpolation, mean=mean, std=std)


_USUAL_INPUT = _imagenet_input()


def _add_imagenet(name: str, module: str, description: str, paper: str, weights: str | None, preprocessing: Preprocessing = _USUAL_INPUT) -> None:
    builder, shape = f"fastcnn.models.{module}:{name}", preprocessing.output_shape
    _add(ModelSpec(name, builder, shape, "imagenet", 1000, description, paper, preprocessing, weights))


def _add_small(name: str, description: str, paper: str, normalisation: tuple[Stats, Stats]) -> None:
    mean, std = normalisation
    if normalisation is _MNIST:
        preprocessing = Preprocessing("L", 28, (28, 28), mean=mean, std=std)
    else:
        preprocessing = Preprocessing("RGB", 32, (32, 32), mean=mean, std=std)
    shipped = ("mnist",) if normalisation is _MNIST else ()
    builder, size = f"fastcnn.models.{name}:{name}", preprocessing.output_shape
    _add(ModelSpec(name, builder, size, "small", 10, description, paper, preprocessing, shipped_weights=shipped))


def _fill_table() -> None:
    _add_imagenet("alexnet", "alexnet", "AlexNet, one-tower version", "Krizhevsky 2014, arXiv:1404.5997", "AlexNet_Weights")
    for depth in (11, 13, 16, 19):
        paper = "Simonyan & Zisserman 2015, arXiv:1409.1556"
        _add_imagenet(f"vgg{depth}", "vgg", f"VGG-{depth}", paper, f"VGG{depth}_Weights")
        _add_imagenet(f"vgg{depth}_bn", "vgg", f"VGG-{depth} with BatchNorm", paper, f"VGG{depth}_BN_Weights")
    _add_imagenet(
        "googlenet", "googlenet", "GoogLeNet with BatchNorm, two auxiliary heads", "Szegedy et al. 2015, arXiv:1409.4842", "GoogLeNet_Weights"
    )
    paper = "Szegedy et al. 2016, arXiv:1512.00567"
    _add_imagenet("inception_v3", "inception_v3", "Inception-v3, one auxiliary head", paper, "Inception_V3_Weights", _imagenet_input(299, 342))
    # No torchvision twin; the weights that timm publishes take input in [-1, 1], and were evaluated on a crop of 87.5 %, bicubic.
    paper = "Szegedy et al. 2017, arXiv:1602.07261"
    _add_imagenet("inception_v4", "inception_v4", "Inception-v4", paper, None, _imagenet_input(299, 341, "bicubic", _UNIT_RANGE))
    for depth in (18, 34, 50, 101, 152):
        # From 50 layers on, torchvision's default weights are its second set, evaluated after a resize to 232.
        picture = _imagenet_input(resize=256 if depth < 50 else 232)
        _add_imagenet(f"resnet{depth}", "resnet", f"ResNet-{depth}", "He et al. 2016, arXiv:1512.03385", f"ResNet{depth}_Weights", picture)
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
    """The names that match a wildcard pattern, in natural order; an empty list where none does. Capitals make no difference."""
    return sorted(fnmatch.filter(_SPECS, pattern.lower()), key=_natural_key)


def resolve(name: str) -> str | None:
    """The model that a name means, whatever its capitals and separators (`ResNet50`, `inception-v3`); None where it means none."""
    return name if name in _SPECS else {_letters(own): own for own in _SPECS}.get(_letters(name))


def same_letters(name: str, other: str) -> bool:
    """Whether two names differ in nothing but capitals and separators."""
    return _letters(name) == _letters(other)


def _letters(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())


def model_spec(name: str) -> ModelSpec:
    """The row of a model, by a name as `resolve` takes it. Raises UnknownNameError, with the nearest names, for one that means no model."""
    known = resolve(name)
    if known is None:
        raise UnknownNameError("model", name, list_models(), hint="`fastcnn list` shows the names")
    return _SPECS[known]
