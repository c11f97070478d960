"""Whether a state dict fits a module, and what to say where it does not."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from torch import Tensor, nn

from fastcnn.errors import WeightsError
from fastcnn.models.registry import ModelInfo

_LISTED = 5


def check_fit(model: nn.Module, state: Mapping[str, Tensor], what: str, allow_missing: Sequence[str]) -> list[str]:
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
        hint = hint or _fitting_classes(state, own, wrong_shape)
        raise WeightsError(f"{what} does not fit {who}: {', '.join(faults)}{hint}")
    return absent


def _fitting_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], wrong_shape: Sequence[str]) -> str:
    """What makes the weights fit where only the number of classes differs: one number in the shapes of the last layers."""
    pairs = {(len(own[key]), len(state[key])) for key in wrong_shape if own[key].dim() and state[key].dim()}
    if len(pairs) != 1 or any(state[key].shape[1:] != own[key].shape[1:] for key in wrong_shape):
        return ""
    ((_, count),) = pairs
    return f"; num_classes={count} (--num-classes {count}) fits"


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
