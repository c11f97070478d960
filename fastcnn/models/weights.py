"""Weights: from a file without running code from it, from this package or torchvision by name; and their SHA-256."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.errors import RequestError, UnknownNameError, WeightsError
from fastcnn.limits import parse_json
from fastcnn.models.checkpoints import read_checkpoint, read_metadata, within
from fastcnn.models.fit import check_fit
from fastcnn.models.lineage import input_statistics, published_twin, with_transform_input
from fastcnn.models.registry import ModelInfo, ModelSpec, model_spec
from fastcnn.preprocessing import Preprocessing
from fastcnn.text import first_line
from fastcnn.weight_files import means_file

_log = logging.getLogger(__name__)

# The entry of a .safetensors file's metadata that describes its weights. One entry: safetensors writes several in random order.
DESCRIPTION_KEY = "fastcnn.weights"


@dataclass(frozen=True)
class WeightSource:
    """Weights that have been read, and what is known about them.

    Attributes:
        what: the source, for messages.
        origin: the source, for the record.
        tensors: by name, as the module spells them, or an older version of it.
        options: those that the model must be built with, as far as the source says.
        categories: the names of the classes, where the source says.
        preprocessing: the one that the source describes.
    """

    what: str
    origin: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    options: Mapping[str, Any]
    categories: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None


def load_weights(model: nn.Module, source: str | os.PathLike[str], *, allow_missing: Sequence[str] = (), weights_set: str | None = None) -> nn.Module:
    """Loads weights into `model`, all of them or none, and notes the origin in its `fastcnn_info`, if it has one.

    Args:
        model: any module; tensors are cast to the dtypes and devices of its own.
        source: a weight file, safetensors or what `torch.save` wrote (read with `weights_only=True`), whatever it is called;
            the name of weights that this package holds for the model ("mnist"); or the name of torchvision weights, which
            torchvision downloads and caches. What a training script wraps around a state dict is seen through: see
            `checkpoints.read_checkpoint`.
        allow_missing: wildcard patterns of the keys that the source may lack, e.g. ("fc.*", "AuxLogits.*"). They keep their values.
        weights_set: "plain" or "ema" (the default), where a file holds weights and their moving average.

    Missing `num_batches_tracked` keys are always fine, and so are auxiliary heads in the source where the model was built without
    (`aux_logits=False`). This function never changes `transform_input`: `create_model` sets it to what its source needs.

    Returns `model`. Raises WeightsError if the source is missing, damaged, or does not fit, saying which keys are missing, unexpected
    or of the wrong shape; UnknownNameError for an unknown weights name. The model is then as it was.
    """
    info = getattr(model, "fastcnn_info", None)
    opened = open_weights(info.name if isinstance(info, ModelInfo) else None, source, weights_set, tuple(model.state_dict()))
    return fill(model, opened, allow_missing=allow_missing)


def open_weights(model: str | None, source: str | os.PathLike[str], weights_set: str | None = None, own: Collection[str] = ()) -> WeightSource:
    """Reads weights for a model of the table, or with None for a module of the caller's own. Arguments and errors as in `load_weights`.

    `own` are the names of the module to load into, where it exists already.
    """
    spec = None if model is None else model_spec(model)
    shipped = None if model is None else shipped_weights(model, source)
    name = None if shipped is not None else weights_name(source)
    if name is not None:
        if weights_set is not None:
            raise RequestError(f"{name} names one set of weights: weights_set={weights_set!r} is for a file that holds two")
        entry = _torchvision_weights(spec, name)
        return _published(entry, _download(entry), f"torchvision: {entry.name}", f"torchvision's {entry}")
    path = shipped or Path(source)
    tensors = read_checkpoint(path, weights_set, own)
    origin = f"shipped: {source}" if shipped is not None else f"file: {path.name}"
    description = describe_weights(path)
    _check_digests(path, description, tensors)
    if description:
        options = dict(description.get("options") or {}) if description.get("model") == model else {}
        classes = tuple(description.get("classes") or ()) or None
        return WeightSource(str(path), origin, tensors, options, classes, _preprocessing(path, description))
    said = read_metadata(path).get("transform_input")
    if said is not None:
        return WeightSource(str(path), origin, tensors, {"transform_input": said.lower() == "true"})
    entry = _twin(spec, path) if spec is not None and "transform_input" in spec.options() else None
    if entry is not None:
        return _published(entry, tensors, f"{origin}, torchvision's {entry}", str(path))
    return WeightSource(str(path), origin, tensors, {})


def fill(model: nn.Module, source: WeightSource, *, allow_missing: Sequence[str] = (), chosen: Collection[str] = ()) -> nn.Module:
    """Copies the weights into `model`, all of them or none, and notes what is known about them in its `fastcnn_info`.

    `chosen` are the options that the caller decided on: what the source does not say about them needs no guess. Returns
    `model`; raises WeightsError where the weights do not fit.
    """
    state = _as_this_model_spells_it(model, within(source.tensors, model.state_dict(), source.what))
    absent = check_fit(model, state, source.what, allow_missing)
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)
    info = getattr(model, "fastcnn_info", None)
    if isinstance(info, ModelInfo):
        origin = source.origin
        if absent:
            without = [pattern for pattern in allow_missing if fnmatch.filter(absent, pattern)]
            origin += f" (without {', '.join(without)}: {info.weights})"
        preprocessing = _input_of(info, source, state, chosen)
        model.__dict__["fastcnn_info"] = dataclasses.replace(
            info, weights=origin, preprocessing=preprocessing, categories=source.categories, weights_sha256=None
        )
    return model


def _input_of(info: ModelInfo, source: WeightSource, state: Mapping[str, Tensor], chosen: Collection[str]) -> Preprocessing:
    """The preprocessing that these weights expect of a model built with its options; warns where that is a guess."""
    if "transform_input" not in info.options:
        return source.preprocessing or info.preprocessing
    spec, transforms = model_spec(info.name), info.options["transform_input"]
    if source.preprocessing is not None:
        wanted = source.options.get("transform_input", transforms)
        if wanted == transforms:
            return source.preprocessing
        adapted = with_transform_input(source.preprocessing, transforms)
        if "transform_input" not in chosen:
            _log.warning(
                "%s expects transform_input=%s, and this %s was built otherwise: mean %s and std %s, as recorded, give it the same input",
                *(source.what, wanted, info.name, adapted.mean, adapted.std),
            )
        return adapted
    assumed = spec.preprocessing_for(info.options)
    if transforms or "transform_input" in {*chosen, *source.options}:
        return assumed
    seen = input_statistics(state)
    range_ = None if seen is None else seen.range
    if range_ == "ImageNet":
        _log.info("%s was trained on ImageNet's normalisation: its first layer saw %s", source.what, seen)
        return spec.preprocessing
    if range_ == "[-1, 1]":
        _log.info("%s was trained on [-1, 1]: its first layer saw %s", source.what, seen)
        return assumed
    _log.warning(
        "%s does not say how its pictures were normalised: [-1, 1] (mean = std = 0.5) is assumed%s; "
        "transform_input=False or True (--no-transform-input, --transform-input) settles it",
        *(source.what, "" if seen is None else f", although its first layer was trained on input of {seen}"),
    )
    return assumed


def weights_name(source: str | os.PathLike[str]) -> str | None:
    """The name of published weights that `source` is, or None where it means a file."""
    return source if isinstance(source, str) and not means_file(source) else None


def shipped_weights(model: str, source: str | os.PathLike[str]) -> Path | None:
    """The file in this package that holds the weights `source` of a model; None where `source` is no such name."""
    if not isinstance(source, str) or source not in model_spec(model).shipped_weights:
        return None
    return Path(__file__).with_name("shipped") / f"{model}-{source}.safetensors"


def describe_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `fastcnn train` wrote about the weights in a .safetensors file: model, options, classes, preprocessing, recipe, history.

    Empty for any other file.
    """
    try:
        description = parse_json(read_metadata(Path(path)).get(DESCRIPTION_KEY, "{}"))
    except ValueError:
        return {}
    return description if isinstance(description, dict) else {}


def description_digests(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What `fastcnn train` writes under "digests" of a description, and what is looked at when the file is loaded: SHA-256 of both."""
    text = json.dumps({key: value for key, value in description.items() if key != "digests"}, sort_keys=True)
    return {"weights": state_dict_sha256(tensors), "description": hashlib.sha256(text.encode()).hexdigest()}


def _check_digests(path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError where the file says what it was, and is something else, or says it without a digest. Files of others say nothing."""
    if not description:
        return
    stored = description.get("digests")
    if stored is None:
        raise WeightsError(f"weight file {path} is damaged, or of an earlier build: its description has no digests; train again, or strip it")
    found = description_digests(description, tensors)
    changed = [part for part in found if not isinstance(stored, Mapping) or stored.get(part) != found[part]]
    if changed:
        raise WeightsError(f"weight file {path} is damaged: its {' and '.join(changed)} changed since it was written (SHA-256)")


def _preprocessing(path: Path, description: Mapping[str, Any]) -> Preprocessing | None:
    if description.get("preprocessing") is None:
        return None
    try:
        return Preprocessing.from_dict(description["preprocessing"])
    except RequestError as error:
        raise WeightsError(f"weight file {path} has a damaged description: {error}") from error


def state_dict_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and bytes of the tensors, sorted by name.

    The same weights have the same digest in whatever container, order, memory layout or device they come. Takes half a
    second per gigabyte on a CPU with SHA instructions.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{','.join(map(str, tensor.shape))}\0"
        digest.update(header.encode())
        # As bytes: numpy knows neither bfloat16 nor the float8 dtypes. reshape, because a 0-dim tensor cannot be viewed as bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _torchvision_weights(spec: ModelSpec | None, name: str) -> Any:
    """The member of a torchvision weights enum that `name` means for a model."""
    import torchvision

    hint = "and there is no such file"
    if spec is None or spec.torchvision_weights is None:
        who = "a module of your own" if spec is None else spec.name
        own_names = "".join(f"{known!r}, which this package holds, or " for known in (() if spec is None else spec.shipped_weights))
        raise WeightsError(f"torchvision publishes no weights for {who}, so {name!r} means nothing here, {hint}: give {own_names}a file")
    enum_name, _, member = name.rpartition(".")
    enum = torchvision.models.get_model_weights(spec.name)
    known = [*enum.__members__, *(f"{spec.torchvision_weights}.{key}" for key in enum.__members__)]
    if enum_name not in ("", spec.torchvision_weights) or member not in enum.__members__:
        raise UnknownNameError(f"weights of {spec.name}", name, known, hint=f"known: {', '.join(enum.__members__)}, {hint}")
    return enum[member]


def _published(entry: Any, tensors: Mapping[str, Tensor], origin: str, what: str) -> WeightSource:
    """torchvision's weights. Its own models switch `transform_input` on with any of them; others lack the option."""
    categories = tuple(entry.meta["categories"]) if entry.meta.get("categories") else None
    return WeightSource(what, origin, tensors, {"transform_input": True}, categories, Preprocessing.from_torchvision(entry.transforms()))


def _twin(spec: ModelSpec, path: Path) -> Any | None:
    import torchvision

    return published_twin(path, torchvision.models.get_model_weights(spec.name))


def _download(entry: Any) -> dict[str, Tensor]:
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # network, disk, hash: whatever it was, there are no weights
        raise WeightsError(f"torchvision could not get {entry} from {entry.url}: {first_line(error)}") from error


def _as_this_model_spells_it(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    upgrade = getattr(model, "upgrade_state_dict", None)
    if upgrade is not None:
        state = upgrade(state)
    if getattr(model, "aux_logits", None) is False:
        heads = tuple(f"{head}." for head in getattr(model, "aux_heads", ()))
        state = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    return state
