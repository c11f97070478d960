"""Reads weight files as people leave them: any ending, wrapped, prefixed, with a moving average beside the weights.

The content says how a file is read, not its name. Nothing in a file is run: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastcnn.archives import ZIP_MAGIC, ArchiveError, read_directory
from fastcnn.errors import RequestError, WeightsError
from fastcnn.limits import MAX_BYTES, beyond
from fastcnn.text import first_line
from fastcnn.weight_files import is_safetensors, safetensors_header

_log = logging.getLogger(__name__)

WeightsSet = Literal["ema", "plain"]
WEIGHTS_SETS: tuple[str, ...] = get_args(WeightsSet)

# Where training scripts keep a state dict in a checkpoint: PyTorch's examples and Lightning, its tutorials, torchvision and
# timm, and for the moving average of the weights timm, torchvision and others.
_PLAIN_UNDER = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_EMA_UNDER = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "params_ema")
# What wrappers put before every name: DataParallel, torch.compile, a Lightning module, a detector.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
# Of a module's names, the share that must stand under a prefix for it to be the module: counters and auxiliary heads may be missing.
_MOST = 0.75
# What others count in a model's buffers: AveragedModel its updates, thop operations.
_COUNTERS = ("n_averaged", "total_ops", "total_params")


def read_checkpoint(path: Path, weights_set: str | None = None, own: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a weight file, under the names of the module that they belong to.

    Where the file holds two sets of weights, the moving average is taken, as timm does, and a warning says so. What was
    stripped from the names is logged.

    Args:
        path: safetensors, or what `torch.save` wrote.
        weights_set: "ema" or "plain", where a file holds the moving average of the weights beside them. None takes "ema".
        own: names of the module to load into; they are never taken for a prefix or a counter.

    Raises WeightsError where there is no such file, it is damaged, or holds no weights, or not the set that is asked for;
    RequestError for an unknown set.
    """
    if weights_set is not None and weights_set not in WEIGHTS_SETS:
        raise RequestError(f"the set of weights is {' or '.join(map(repr, WEIGHTS_SETS))}, not {weights_set!r}")
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist" if not path.exists() else f"weight file {path} is not a file")
    if _is_safetensors(path):
        sets: dict[str, tuple[str, Mapping[str, Any]]] = {"plain": ("", _read_safetensors(path))}
    else:
        sets = _sets(_read_torch(path))
    if not sets:
        raise WeightsError(
            f"weight file {path} holds no state dict: save model.state_dict(), alone or under {' or '.join(map(repr, _PLAIN_UNDER[:3]))}"
        )
    tensors = dict(_choose(path, sets, weights_set))
    _check_tensors(path, tensors)
    return _under_its_own_names(tensors, path, own)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError for what is no plain tensor, or larger than the numbers that the file holds for it: a copy would fill the memory."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"weight file {path}: {name} is no plain tensor (its layout is {tensor.layout}, its device {tensor.device})")
        reason = beyond(MAX_BYTES, f"{name} has bytes beyond those of the file:", tensor.numel() * tensor.element_size() - size)
        if reason is not None:
            raise WeightsError(f"weight file {path}: {reason}")


def check_archive(path: Path) -> None:
    """Looks at the directory and the checksums of what `torch.save` wrote, before it is unpickled; a bare pickle has neither.

    Raises ArchiveError where they do not hold. PyTorch can be told to write no checksums (`set_crc32_options`): where that of the pickle and
    of the tensors alike is another one, none is taken for it.
    """
    with path.open("rb") as file:
        if file.read(4) != ZIP_MAGIC:
            return
        directory = read_directory(file)
        whole = {name: directory.holds(name, directory.read(file, name)) for name in directory.records}
    wrong = [name for name, holds in whole.items() if not holds]
    computed = any(holds for name, holds in whole.items() if _holds_content(name))
    if wrong and computed:
        raise ArchiveError(f"record {wrong[0]} does not have its checksum")


def _holds_content(name: str) -> bool:
    return name == "data.pkl" or name.startswith("data/")


def within(tensors: Mapping[str, Tensor], own: Collection[str], what: str) -> dict[str, Tensor]:
    """Those of `tensors` that belong to the module with the names `own`, where it is a part of a larger one, such as a Lightning module.

    What a script keeps beside the network (a loss with weights, a metric, a teacher) shares no prefix with it. Where no
    name is the module's own, those under the prefix that makes most of them so are taken, and the log says so.

    Raises WeightsError where two parts would fit alike.
    """
    tensors = dict(tensors)
    if not own or not tensors or not _has_no_own_name(tensors, own):
        return tensors
    first = max(own, key=len)
    counts = {key.removesuffix(first): 0 for key in tensors if key.endswith(f".{first}")}
    for prefix in counts:
        counts[prefix] = sum(f"{prefix}{name}" in tensors for name in own)
    best = [prefix for prefix, count in counts.items() if count == max(counts.values()) and count > _MOST * len(own)]
    if len(best) > 1:
        raise WeightsError(f"{what} holds the model {len(best)} times, under {' and '.join(map(repr, best))}: save the one that is meant")
    if not best:
        return tensors
    others = [key for key in tensors if not key.startswith(best[0])]
    _log.info(
        "%s: the model is what stands under %r%s", what, best[0], f"; {len(others)} others, such as {others[0]}, are left out" if others else ""
    )
    return {key.removeprefix(best[0]): tensor for key, tensor in tensors.items() if key.startswith(best[0])}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other file."""
    if not _is_safetensors(path):
        return {}
    try:
        safetensors_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}  # reading the tensors will say what is wrong


def _is_safetensors(path: Path) -> bool:
    """As it begins; or, where it is cut off, as it is called."""
    if is_safetensors(path):
        return True
    return path.suffix == ".safetensors" and path.is_file() and not _is_pickled(_start_of(path))


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _is_pickled(start: bytes) -> bool:
    """A zip archive, as `torch.save` writes since PyTorch 1.6, or a bare pickle, as before."""
    return start.startswith((b"PK\x03\x04", b"\x80"))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as it names them. Raises WeightsError for a damaged one."""
    try:
        safetensors_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"weight file {path} is truncated or damaged: {first_line(error)}") from error


def _read_torch(path: Path) -> Any:
    start = _start_of(path)
    if not _is_pickled(start):
        looks = f"it begins with {start[:16]!r}" if start else "it is empty"
        raise WeightsError(f"weight file {path} is truncated or damaged: {looks}, as neither safetensors nor a PyTorch checkpoint does")
    try:
        check_archive(path)
        # The open file, not the path, whose ending torch.load would go by. Its warning is about TorchScript; the error below says it.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"), _plain_data_allowed():
            return torch.load(file, map_location="cpu", weights_only=True)
    except ArchiveError as error:
        raise WeightsError(f"weight file {path} is truncated or damaged: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error)
        if "TorchScript" in text:
            raise WeightsError(f"weight file {path} is a TorchScript program, not a state dict: save model.state_dict()") from error
        if "Unsupported global" in text:  # how weights_only=True refuses a pickle that names code
            raise WeightsError(f"weight file {path} holds Python objects, not only tensors, and is not unpickled: save model.state_dict()") from error
        raise WeightsError(f"weight file {path} is truncated or damaged: {first_line(error)}") from error


@contextlib.contextmanager
def _plain_data_allowed() -> Iterator[None]:
    """Lets `weights_only=True` read what scripts keep beside the weights: arguments of a run and NumPy's numbers, which run nothing."""
    make_scalar: Any = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]  # NumPy 2 renamed it
    dtypes = {type(np.dtype(kind)) for kind in "?bhilefd"}
    with torch.serialization.safe_globals([argparse.Namespace, np.dtype, *dtypes, *((make_scalar, name) for name in names)]):
        yield


def _sets(content: Any) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """ "plain" and "ema", as far as they are there, each with the key that it stands under."""
    if not isinstance(content, Mapping) or not content:
        return {}
    if all(isinstance(value, Tensor) for value in content.values()):
        return {"plain": ("", content)}
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for kind, keys in (("plain", _PLAIN_UNDER), ("ema", _EMA_UNDER)):
        for key in keys:
            inside = _sets(content.get(key))
            if kind == "ema" and inside:
                inside = {"ema": inside.get("plain") or inside["ema"]}
            for inner_kind, (inner_key, tensors) in inside.items():
                found.setdefault(inner_kind, (f"{key}.{inner_key}".rstrip("."), tensors))
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not found and any("." in key for key in tensors):  # names of parameters, and beside them what else the script had
        found["plain"] = ("", tensors)
    return found


def _choose(path: Path, sets: Mapping[str, tuple[str, Mapping[str, Any]]], wanted: str | None) -> Mapping[str, Tensor]:
    if wanted is not None and wanted not in sets:
        what = "moving average of the weights" if wanted == "ema" else "weights but their moving average"
        raise WeightsError(f"weight file {path} holds no {what}: leave weights_set (--weights-set) out, or ask for the other one")
    chosen = wanted or ("ema" if "ema" in sets else "plain")
    key, tensors = sets[chosen]
    if len(sets) == 2 and wanted is None:
        _log.warning(
            "%s holds two sets of weights: %r, the moving average, is taken, as timm does; weights_set='plain' (--weights-set plain) takes %r",
            *(path.name, key, sets["plain"][0]),
        )
    elif chosen == "ema" and wanted is None:
        _log.info("%s holds the moving average of the weights alone, under %r: it is taken", path.name, key)
    return tensors


def _under_its_own_names(tensors: dict[str, Tensor], path: Path, own: Collection[str]) -> dict[str, Tensor]:
    counters = [key for key in tensors if key.rpartition(".")[2] in _COUNTERS and key not in own]
    tensors = {key: tensor for key, tensor in tensors.items() if key not in counters}
    stripped = ""
    while tensors and _has_no_own_name(tensors, own):
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), None)
        if prefix is None:
            break
        stripped += prefix
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    if stripped:
        _log.info("%s: every name began with %r, which was stripped", path.name, stripped)
    if counters:
        _log.info("%s: %d counters of other tools, such as %s, were left out", path.name, len(counters), counters[0])
    return tensors


def _has_no_own_name(tensors: Mapping[str, Tensor], own: Collection[str]) -> bool:
    """Whether no tensor has a name of the module itself yet."""
    return not any(key in tensors for key in own)
