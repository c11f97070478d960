"""Weights: from a file without running code from it, from this package or torchvision by name; and their SHA-256."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastcnn.errors import RequestError, UnknownNameError, WeightsError
from fastcnn.models.registry import ModelInfo, model_spec
from fastcnn.preprocessing import Preprocessing

_log = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".pth", ".pt")
_NESTED_UNDER = ("state_dict", "model")
# The entry of a .safetensors file's metadata that describes its weights. One entry: safetensors writes several in random order.
DESCRIPTION_KEY = "fastcnn.weights"
_LISTED = 5


def load_weights(model: nn.Module, source: str | os.PathLike[str], *, allow_missing: Sequence[str] = ()) -> nn.Module:
    """Loads weights into `model`, all of them or none, and notes the origin in its `fastcnn_info`, if it has one.

    Args:
        model: any module; tensors are cast to the dtypes and devices of its own.
        source: a .safetensors file, a .pth or .pt file (read with `weights_only=True`; a dictionary under "state_dict" or "model" and
            a "module." prefix are seen through), the name of weights that this package holds for the model ("mnist"), or the name of
            torchvision weights, which torchvision downloads and caches.
        allow_missing: wildcard patterns of the keys that the source may lack, e.g. ("fc.*", "AuxLogits.*"). They keep their values.

    Missing `num_batches_tracked` keys are always fine, and so are auxiliary heads in the source where the model was built without
    (`aux_logits=False`). This function never changes `transform_input`: `create_model` sets it to what its source needs.

    Returns `model`. Raises WeightsError if the source is missing, damaged, or does not fit, saying which keys are missing, unexpected
    or of the wrong shape; UnknownNameError for an unknown weights name. The model is then as it was.
    """
    info = getattr(model, "fastcnn_info", None)
    shipped = shipped_weights(info.name, source) if isinstance(info, ModelInfo) else None
    name = None if shipped is not None else weights_name(source)
    categories: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    if name is None:
        path = shipped or Path(source)
        state = _read_file(path)
        origin, what = f"shipped: {source}" if shipped is not None else f"file: {path.name}", str(path)
        description = describe_weights(path)
        categories = tuple(description.get("classes") or ()) or None
        preprocessing = _preprocessing(path, description)
    else:
        entry = _torchvision_weights(model, name)
        state = _download(entry)
        categories = tuple(entry.meta["categories"]) if entry.meta.get("categories") else None
        preprocessing = Preprocessing.from_torchvision(entry.transforms())
        origin, what = f"torchvision: {entry.name}", f"torchvision's {entry}"
    state = _as_this_model_spells_it(model, state)
    absent = _check_fit(model, state, what, allow_missing)
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)

    if isinstance(info, ModelInfo):
        if absent:
            without = [pattern for pattern in allow_missing if fnmatch.filter(absent, pattern)]
            origin += f" (without {', '.join(without)}: {info.weights})"
        if options_of(info.name, source).get("transform_input") and getattr(model, "transform_input", None) is False:
            _log.warning("%s expects transform_input=True, which this %s was built without", what, info.name)
        preprocessing = preprocessing or info.preprocessing
        model.__dict__["fastcnn_info"] = dataclasses.replace(
            info, weights=origin, preprocessing=preprocessing, categories=categories, weights_sha256=None
        )
    return model


def weights_name(source: str | os.PathLike[str]) -> str | None:
    """The name of published weights that `source` is, or None where it means a file."""
    if not isinstance(source, str) or source.endswith(_SUFFIXES) or os.sep in source or Path(source).exists():
        return None
    return source


def shipped_weights(model: str, source: str | os.PathLike[str]) -> Path | None:
    """The file in this package that holds the weights `source` of a model; None where `source` is no such name."""
    if not isinstance(source, str) or source not in model_spec(model).shipped_weights:
        return None
    return Path(__file__).with_name("shipped") / f"{model}-{source}.safetensors"


def options_of(model: str, source: str | os.PathLike[str]) -> dict[str, Any]:
    """The options that a model must be built with to take the weights `source`, as far as the source says."""
    path = shipped_weights(model, source)
    if path is None:
        if weights_name(source) is not None:
            return {"transform_input": True}  # torchvision's own models switch it on with any of its weights; others lack the option
        path = Path(source)
    description = describe_weights(path)
    if description:
        return dict(description.get("options") or {}) if description.get("model") == model else {}
    return {"transform_input": _metadata(path).get("transform_input", "false").lower() == "true"}


def describe_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `fastcnn train` wrote about the weights in a .safetensors file: model, options, classes, preprocessing, recipe, history.

    Empty for any other file.
    """
    try:
        description = json.loads(_metadata(Path(path)).get(DESCRIPTION_KEY, "{}"))
    except ValueError:
        return {}
    return description if isinstance(description, dict) else {}


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


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist" if not path.exists() else f"weight file {path} is not a file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _SUFFIXES:
        return _read_torch(path)
    raise WeightsError(f"weight file {path} must end in {', '.join(_SUFFIXES)}: the ending says how to read it")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"weight file {path} is truncated or damaged: {_first_line(error)}") from error


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}  # reading the tensors will say what is wrong


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about TorchScript; the error below says it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error)
        if "TorchScript" in text:
            raise WeightsError(f"weight file {path} is a TorchScript program, not a state dict: save model.state_dict()") from error
        if "Unsupported global" in text:  # how weights_only=True refuses a pickle that names code
            raise WeightsError(f"weight file {path} holds Python objects, not only tensors, and is not unpickled: save model.state_dict()") from error
        raise WeightsError(f"weight file {path} is truncated or damaged: {_first_line(error)}") from error
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"weight file {path} holds no state dict: save model.state_dict(), alone or under {' or '.join(map(repr, _NESTED_UNDER))}")
    return dict(content)


def _torchvision_weights(model: nn.Module, name: str) -> Any:
    """The member of a torchvision weights enum that `name` means for `model`."""
    import torchvision

    info = getattr(model, "fastcnn_info", None)
    enum_name, _, member = name.rpartition(".")
    own_enum = model_spec(info.name).torchvision_weights if isinstance(info, ModelInfo) else None
    shipped = model_spec(info.name).shipped_weights if isinstance(info, ModelInfo) else ()
    hint = f"a weight file ends in {', '.join(_SUFFIXES)}"
    if own_enum is None:
        who = info.name if isinstance(info, ModelInfo) else type(model).__name__
        own_names = "".join(f"{known!r}, which this package holds, or " for known in shipped)
        raise WeightsError(f"torchvision publishes no weights for {who}, so {name!r} means nothing here: give {own_names}a file ({hint})")
    enum = torchvision.models.get_model_weights(info.name)  # type: ignore[union-attr]
    known = [*enum.__members__, *(f"{own_enum}.{key}" for key in enum.__members__)]
    if enum_name not in ("", own_enum) or member not in enum.__members__:
        raise UnknownNameError(f"weights of {info.name}", name, known, hint=f"known: {', '.join(enum.__members__)}; {hint}")  # type: ignore[union-attr]
    return enum[member]


def _download(entry: Any) -> dict[str, Tensor]:
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # network, disk, hash: whatever it was, there are no weights
        raise WeightsError(f"torchvision could not get {entry} from {entry.url}: {_first_line(error)}") from error


def _as_this_model_spells_it(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in state):  # nn.DataParallel's prefix
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    upgrade = getattr(model, "upgrade_state_dict", None)
    if upgrade is not None:
        state = upgrade(state)
    if getattr(model, "aux_logits", None) is False:
        heads = tuple(f"{head}." for head in getattr(model, "aux_heads", ()))
        state = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    return state


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], what: str, allow_missing: Sequence[str]) -> list[str]:
    """Raises WeightsError unless `state` fits; returns the keys that it lacks and may lack."""
    own = model.state_dict()
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    absent = [key for key in needed if key not in state]
    missing = [key for key in absent if not any(fnmatch.fnmatchcase(key, pattern) for pattern in allow_missing)]
    unexpected = [key for key in state if key not in own]
    wrong_shape = [key for key in own if key in state and state[key].shape != own[key].shape]
    wrong_dtype = [key for key in own if key in state and state[key].is_floating_point() != own[key].is_floating_point()]
    faults = []
    if missing:
        faults.append(f"{_keys(missing)} missing ({_list(_in_groups(missing, state))})")
    if unexpected:
        faults.append(f"{_keys(unexpected)} unexpected ({_list(_in_groups(unexpected, own))})")
    if wrong_shape:
        shapes = [f"{key} {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}" for key in wrong_shape]
        faults.append(f"{_keys(wrong_shape)} of the wrong shape ({_list(shapes, '; ')})")
    if wrong_dtype:
        dtypes = [f"{key} {state[key].dtype}" for key in wrong_dtype]
        faults.append(f"{_keys(wrong_dtype)} of the wrong kind of dtype ({_list(dtypes)})")
    if faults:
        info = getattr(model, "fastcnn_info", None)
        who = info.name if isinstance(info, ModelInfo) else type(model).__name__
        hint = "; load_weights(..., allow_missing=PATTERNS) takes a part" if missing and len(faults) == 1 else ""
        raise WeightsError(f"{what} does not fit {who}: {', '.join(faults)}{hint}")
    return absent


def _in_groups(keys: Sequence[str], others: Iterable[str]) -> list[str]:
    """Writes "AuxLogits.*" for the keys below a module of which `others` has none, where they are more than two."""
    modules_of_others = {module for key in others for module in _modules_above(key)}
    groups = [next((module for module in _modules_above(key) if module not in modules_of_others), key) for key in keys]
    sizes = Counter(groups)
    return list(dict.fromkeys(f"{group}.*" if sizes[group] > 2 else key for key, group in zip(keys, groups, strict=True)))


def _modules_above(key: str) -> Iterator[str]:
    """The paths of the modules around a key, outermost first: a and a.b for a.b.weight."""
    return accumulate(key.split(".")[:-1], "{}.{}".format)


def _keys(keys: Sequence[str]) -> str:
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''}"


def _list(entries: Sequence[str], separator: str = ", ") -> str:
    rest = len(entries) - _LISTED
    shown: Iterable[str] = entries[:_LISTED]
    return separator.join(shown) + (f"{separator}and {rest} more" if rest > 0 else "")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")
