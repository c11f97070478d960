"""The preprocessing that belongs to a model, a module or a file, where one is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastcnn.models.registry import IMAGENET_MEAN, IMAGENET_STD
from fastcnn.preprocessing import Channels, Preprocessing


def preprocessing_of(source: Any) -> Preprocessing | None:
    """The preprocessing of a table row, a ModelInfo, a module that has one, an optimized module, or the metadata of a file; None where none is known.

    Files written before the description existed hold mean and std only: resize, crop and interpolation are then those of the model of that name,
    or the usual 224/256 of the input's side.

    Raises:
        RequestError: there is a description, and it is damaged.
    """
    own = getattr(source, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own
    for attribute in ("fastcnn_info", "info"):
        described = getattr(source, attribute, None)
        if described is not None:
            return preprocessing_of(described)
    if not isinstance(source, Mapping):
        return None
    entry = source.get("input", source)
    if entry.get("preprocessing") is not None:
        return Preprocessing.from_dict(entry["preprocessing"])
    stats = entry.get("normalization") or entry
    shape = entry.get("shape") or source.get("input_size")
    if not (stats.get("mean") and stats.get("std") and isinstance(shape, (list, tuple))):
        return None
    return _from_before(source, stats, [int(side) for side in shape[-2:]])


def usual_preprocessing(size: Sequence[int | None]) -> Preprocessing | None:
    """What is usual for pictures of the size (C, H, W), for a model that says nothing; None where it takes neither RGB nor grey ones.

    RGB: the shorter side to 8/7 of the size, a crop from the middle, ImageNet's normalisation. Grey: the same, scaled to [0, 1] alone.
    """
    if len(size) != 3 or size[0] not in (1, 3) or not size[1] or not size[2]:
        return None
    usual = Preprocessing("RGB", 256, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if size[0] == 1:
        usual = replace(usual, channels="L", mean=(0.0,), std=(1.0,))
    return usual.at_size(size[1], size[2])


def _from_before(source: Mapping[str, Any], stats: Mapping[str, Any], size: list[int]) -> Preprocessing:
    from fastcnn.models.registry import list_models, model_spec

    model = source.get("model")
    name = model.get("name") if isinstance(model, Mapping) else source.get("name")
    mean, std = tuple(stats["mean"]), tuple(stats["std"])
    channels: Channels = "L" if len(mean) == 1 else "RGB"
    if name in list_models() and model_spec(name).preprocessing.channels == channels:
        usual = model_spec(name).preprocessing
    else:
        usual = Preprocessing(channels=channels, mean=mean, std=std)
    return replace(usual.at_size(size[0], size[1]), mean=mean, std=std)
