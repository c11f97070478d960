"""For which input the weights of an Inception network were trained, where their file does not say.

Three lineages share the names and shapes of Inception-v3 and GoogLeNet:

- TensorFlow's weights, trained on [-1, 1]. torchvision publishes a copy, whose `transform_input=True` turns ImageNet's
  normalisation into that range, and timm publishes others that take [-1, 1] as they are. Weights fine-tuned from either
  belong here too: what reaches their first convolution is [-1, 1].
- GluonCV's, and those of training scripts that started from nothing: ImageNet's mean and deviation, no transform.
- Scripts that leave pixels in [0, 1].

Names and shapes do not tell them apart: timm took torchvision's names, and a head can be dropped or replaced. Two things do.
A file that is byte for byte one of torchvision's is known by its SHA-256, of which the download's address holds the first
digits. And the first BatchNorm has written down what its convolution gave on the training pictures, `running_mean` and
`running_var`: with the filters they tell the mean and the deviation of the input.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastcnn.models.registry import IMAGENET_MEAN, IMAGENET_STD
from fastcnn.preprocessing import Preprocessing

Range = Literal["[-1, 1]", "ImageNet"]

# Deviation of the input: 0.23 to 0.3 in [0, 1], so 0.45 to 0.6 in [-1, 1] and about 1 after ImageNet's normalisation. The
# bounds are the geometric means between them; the outer one is a factor of 2 away. Photographs have a mean within one
# deviation of zero in both; in [0, 1] it is two away.
_DEVIATIONS: dict[Range, tuple[float, float]] = {"[-1, 1]": (0.37, 0.7), "ImageNet": (0.7, 2.0)}
_LARGEST_MEAN = 1.0
# Neighbouring pixels of photographs, and their three colours, are correlated about this much.
_PIXEL_CORRELATION, _COLOUR_CORRELATION = 0.95, 0.95
# Statistics that were learnt follow from the filters: means to a hundredth of a deviation, deviations to a third, in a
# trained Inception-v3 and in networks of random filters on photographs. Statistics drawn at random do not come near.
_LARGEST_RESIDUAL = 0.1
_LARGEST_SPREAD = 2.0


@dataclass(frozen=True)
class InputStatistics:
    """What the first layer saw in training: mean per channel, and the deviation, which is about the same in all of them."""

    mean: tuple[float, ...]
    deviation: float

    @property
    def range(self) -> Range | None:
        """Which of the two conventions of these networks it is; None for neither."""
        if max(map(abs, self.mean)) > _LARGEST_MEAN * self.deviation:
            return None
        return next((name for name, (low, high) in _DEVIATIONS.items() if low <= self.deviation < high), None)

    def __str__(self) -> str:
        return f"mean {'/'.join(f'{value:.2f}' for value in self.mean)} and deviation {self.deviation:.2f}"


def input_statistics(tensors: Mapping[str, Tensor]) -> InputStatistics | None:
    """Mean and deviation of the input, from the first convolution and the BatchNorm behind it; None where these do not tell.

    For a convolution with filters w, E[y] = Σ w · E[x], solved for E[x] by least squares over the filters, and Var[y] is a
    quadratic form in w with the covariance of neighbouring pixels, which photographs share up to its scale. Statistics that
    do not fit this were never learnt (a fresh or a random BatchNorm), and tell nothing.
    """
    weight = next((tensor for tensor in tensors.values() if tensor.dim() == 4 and tensor.shape[1] == 3), None)
    prefix = next((key.removesuffix("conv.weight") for key, tensor in tensors.items() if tensor is weight), "")
    mean, variance = (tensors.get(f"{prefix}bn.running_{name}") for name in ("mean", "var"))
    if weight is None or mean is None or variance is None or mean.shape != variance.shape or len(mean) != len(weight):
        return None
    filters, mean, variance = weight.detach().double().flatten(2), mean.double(), variance.double()
    if not all(bool(tensor.isfinite().all()) for tensor in (filters, mean, variance)) or bool((variance <= 0).any()) or not bool(mean.any()):
        return None
    sums = filters.sum(2)
    deviation = variance.sqrt()
    solution = torch.linalg.lstsq(sums / deviation[:, None], (mean / deviation)[:, None]).solution[:, 0]
    residual = ((sums @ solution - mean) / deviation).square().mean().sqrt()
    ratios = (variance / _variance_of_unit_input(filters, weight.shape[3])).sqrt()
    quartiles = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    if residual > _LARGEST_RESIDUAL or quartiles[2] > _LARGEST_SPREAD * quartiles[0]:
        return None
    return InputStatistics(tuple(solution.tolist()), float(quartiles[1]))


def _variance_of_unit_input(filters: Tensor, width: int) -> Tensor:
    """(N, C, H·W) filters -> (N,) variances of their outputs, on pictures of deviation 1 with the correlations of photographs."""
    positions = torch.arange(filters.shape[2])
    places = torch.stack([positions // width, positions % width], 1).double()
    pixels = _PIXEL_CORRELATION ** torch.cdist(places, places)
    colours = torch.full((filters.shape[1],) * 2, _COLOUR_CORRELATION, dtype=torch.float64).fill_diagonal_(1)
    return torch.einsum("ncp,cd,pq,ndq->n", filters, colours, pixels, filters)


def published_twin(path: Path, enum: Any) -> Any | None:
    """The member of a torchvision weights enum whose download `path` is, whatever it is called now; None where it is none."""
    digests = {match[1]: entry for entry in enum if (match := re.search(r"-([0-9a-f]{8})\.pth$", entry.url))}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digests.get(digest[:8])


def with_transform_input(preprocessing: Preprocessing, transforms: bool) -> Preprocessing:
    """A preprocessing for the model without `transform_input`, changed for the model with it (`transforms`), or the other way round.

    The model's transform is x·a + b per channel, with a = std / 0.5 and b = (mean - 0.5) / 0.5 of ImageNet. Put behind
    (p - m) / s it is (p - m') / s' with s' = s / a and m' = m - b·s': what reaches the first convolution stays the same.
    """
    means, stds = [], []
    for mean, std, imagenet_mean, imagenet_std in zip(preprocessing.mean, preprocessing.std, IMAGENET_MEAN, IMAGENET_STD, strict=True):
        a, b = imagenet_std / 0.5, (imagenet_mean - 0.5) / 0.5
        stds.append(std * a if transforms else std / a)
        means.append(mean + b * std if transforms else mean - b * std / a)
    return replace(preprocessing, mean=tuple(means), std=tuple(stds))
