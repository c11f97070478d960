"""Weights for a model that is none of ours: from a file, under the name that its library gives them, or seeded random ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.errors import RequestError, UnknownNameError, WeightsError
from fastcnn.models.checkpoints import read_checkpoint
from fastcnn.models.foreign import Found, described_by_timm
from fastcnn.models.lineage import published_twin
from fastcnn.models.random_weights import SETTLED, settle
from fastcnn.models.request import ModelRequest
from fastcnn.models.sources import Kind, ModelText
from fastcnn.models.weights import WeightSource, fill, weights_name
from fastcnn.preprocessing import Preprocessing
from fastcnn.text import first_line

_log = logging.getLogger(__name__)

# How people call heads that training alone uses: AuxLogits, aux1, aux_classifier, auxiliary_head.
_AUXILIARY = re.compile(r"aux", re.IGNORECASE)


@dataclass(frozen=True)
class Loaded:
    """What is known of a model's weights: where they come from, the preprocessing that belongs to them, the names of the classes."""

    origin: str
    preprocessing: Preprocessing | None
    categories: tuple[str, ...] | None = None


def foreign_weights(model: nn.Module, found: Found, text: ModelText, request: ModelRequest, size: Sequence[int]) -> Loaded:
    """Gives `model` the weights that were asked for.

    Args:
        size: of one input, without the batch.

    Raises WeightsError for weights that are not there or do not fit, UnknownNameError for a name that its library has not.
    """
    if request.weights is None:
        if request.weights_set is not None:
            raise RequestError(f"--weights-set {request.weights_set} is for a file that holds two sets of weights: give it with --weights FILE")
        if found.weights:
            return Loaded(found.weights, found.preprocessing)
        settle(model, size, request.seed)
        return Loaded(f"random (seed {request.seed}), {SETTLED}", found.preprocessing)
    name = weights_name(request.weights)
    if name is not None:
        return _published(model, found, text, name)
    path = Path(request.weights)
    tensors = read_checkpoint(path, request.weights_set, tuple(model.state_dict()))
    tensors = _without_foreign_heads(model, tensors, path.name)
    source = WeightSource(str(path), f"file: {path.name}", tensors, {})
    fill(model, source, allow_missing=[f"{head}.*" for head in _unused_heads(model, tensors, size)])
    return Loaded(source.origin, _input_of_file(model, found, text, path))


def _input_of_file(model: nn.Module, found: Found, text: ModelText, path: Path) -> Preprocessing | None:
    """The preprocessing that weights in a file need: the library's, but for the two models whose files do not say."""
    if text.kind is not Kind.torchvision or not hasattr(model, "transform_input") or "transform_input" in found.options:
        return found.preprocessing
    import torchvision

    entry = published_twin(path, torchvision.models.get_model_weights(text.name))
    if entry is not None:
        model.__dict__["transform_input"] = True
        return Preprocessing.from_torchvision(entry.transforms())
    _log.warning(
        "%s does not say what input it was trained on, and none is recorded: --transform-input takes ImageNet's normalisation, --no-transform-input "
        "[-1, 1]; the same file as weights of fastcnn's own model (%s --weights %s) is looked at, and gets what its statistics show",
        *(path.name, text.name, path),
    )
    return None


def _published(model: nn.Module, found: Found, text: ModelText, name: str) -> Loaded:
    if text.kind is Kind.torchvision:
        return _published_by_torchvision(model, found, text, name)
    if text.kind is not Kind.timm:
        raise WeightsError(f"nobody publishes weights for {text.title}, so {name!r} means nothing here, and there is no such file: give a file")
    if name.lower() not in ("pretrained", "default"):
        raise UnknownNameError(
            f"weights of {text.text}", name, ["pretrained"], hint="timm's are called pretrained, and a tag of them stands in the model's name"
        )
    import timm

    try:
        pretrained = timm.create_model(text.name, pretrained=True, **found.options)
    except Exception as error:  # network, disk, hash, no such weights: whatever it was, there are none
        raise WeightsError(f"timm could not get the weights of {text.text}: {first_line(error)}") from error
    origin = f"timm: {text.name}, pretrained"
    fill(model, WeightSource(origin, origin, pretrained.state_dict(), {}))
    return Loaded(origin, described_by_timm(pretrained)[1])


def _published_by_torchvision(model: nn.Module, found: Found, text: ModelText, name: str) -> Loaded:
    import torchvision

    enum = torchvision.models.get_model_weights(text.name)
    enum_name, _, member = name.rpartition(".")
    if enum_name not in ("", enum.__name__) or member not in enum.__members__:
        raise UnknownNameError(f"weights of {text.text}", name, enum.__members__, hint=f"known: {', '.join(enum.__members__)}")
    entry: Any = enum[member]
    try:
        tensors = dict(entry.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # network, disk, hash: whatever it was, there are no weights
        raise WeightsError(f"torchvision could not get {entry} from {entry.url}: {first_line(error)}") from error
    fill(model, WeightSource(f"torchvision's {entry}", f"torchvision: {entry.name}", tensors, {}))
    if hasattr(model, "transform_input") and "transform_input" not in found.options:
        model.__dict__["transform_input"] = True  # as torchvision builds it with any of its weights
    categories = tuple(entry.meta.get("categories") or ()) or None
    return Loaded(f"torchvision: {entry.name}", Preprocessing.from_torchvision(entry.transforms()), categories)


def _without_foreign_heads(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensors without those of auxiliary heads that the model was built without: inference does not run them."""
    own = {name for name, _ in model.named_modules()}
    heads = _heads(tensors) - own
    if heads:
        _log.info("%s holds %s, which the model was built without: left out, inference does not run them", what, ", ".join(sorted(heads)))
    return {key: tensor for key, tensor in tensors.items() if _head_of(key) not in heads}


def _unused_heads(model: nn.Module, tensors: Collection[str], size: Sequence[int]) -> list[str]:
    """The auxiliary heads of `model` of which `tensors` has nothing, as far as a run in eval mode shows that their values do not matter."""
    absent = sorted(_heads(model.state_dict()) - _heads(tensors))
    if not absent:
        return []
    ran: set[str] = set()
    hooks = [model.get_submodule(head).register_forward_pre_hook(lambda module, args, head=head: ran.add(head)) for head in absent]
    try:
        with torch.no_grad():
            model(torch.zeros(2, *size))
    except Exception:  # what the model does not take is told where it is captured
        return []
    finally:
        for hook in hooks:
            hook.remove()
    unused = [head for head in absent if head not in ran]
    if unused:
        _log.info("the file has no %s, which are for training: inference does not run them", " and ".join(unused))
    return unused


def _heads(keys: Iterable[str]) -> set[str]:
    return {head for key in keys if (head := _head_of(key))}


def _head_of(key: str) -> str:
    """The auxiliary head that a tensor belongs to, as the path of its module; empty where it belongs to none."""
    parts = key.split(".")[:-1]
    for count, part in enumerate(parts, start=1):
        if _AUXILIARY.match(part):
            return ".".join(parts[:count])
    return ""
