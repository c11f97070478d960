"""How a model packs its output tensors, as JSON: tuples, lists, dicts, named tuples and dataclasses of any depth, and None.

The notation is that of PyTorch's pytrees, `[1, {"type", "context", "children_spec"}]`, with forms of its own for None, named tuples and dataclasses,
which PyTorch writes only where their class was registered. A class that is not at hand where a file is loaded comes back as one of the same name and
fields.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastcnn.errors import CaptureError, FileFormatError

_PROTOCOL = 1
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_SEQUENCES: dict[type, str] = {tuple: "builtins.tuple", list: "builtins.list"}
_MAPPINGS: dict[type, str] = {dict: "builtins.dict", OrderedDict: "collections.OrderedDict"}
_TYPES: dict[str, type] = {name: type_ for type_, name in (*_SEQUENCES.items(), *_MAPPINGS.items())}
_NAMED_TUPLE = "collections.namedtuple"
_DATACLASS = "dataclasses.dataclass"
_NOTHING: dict[str, Any] = {"type": "builtins.NoneType", "context": "null", "children_spec": []}

# Classes met in this process, by what a file holds of them.
_classes: dict[tuple[str, ...], type] = {}


def flatten(outputs: Any, model: str) -> tuple[list[Tensor], str]:
    """The tensors in what the model called `model` returned, in order, and how it packed them.

    Raises:
        CaptureError: a container of another type, or something in one that is neither a tensor nor None.
    """
    tensors: list[Tensor] = []
    tree = _dump(outputs, model, tensors)
    return tensors, json.dumps([_PROTOCOL, tree])


def packer(structure: str) -> Callable[[Sequence[Any]], Any]:
    """The inverse: a function that packs a flat list of outputs as `structure` says.

    Raises:
        FileFormatError: `structure` is not what `flatten` returns.
    """
    try:
        _, tree = json.loads(structure)
        count = _count(tree)
        _load(tree, iter(range(count)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileFormatError(f"the structure of the model's outputs cannot be read: {structure[:80]}") from error
    if tree["type"] is None:
        return operator.itemgetter(0)  # one tensor, as nearly every model returns
    return lambda outputs: _load(tree, iter(outputs))


def _count(tree: dict[str, Any]) -> int:
    return 1 if tree["type"] is None else sum(map(_count, tree["children_spec"]))


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass in order, that of a model library's `ModelOutput` too; None of anything else."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    fields = dataclasses.fields(value)
    return {field.name: getattr(value, field.name) for field in fields} if all(field.init for field in fields) else None


def _dump(value: Any, model: str, tensors: list[Tensor]) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _LEAF
    if value is None:
        return _NOTHING
    kind = type(value)
    if kind in _SEQUENCES:
        return _node(_SEQUENCES[kind], None, value, model, tensors)
    if kind in _MAPPINGS and all(isinstance(key, (str, int)) for key in value):
        return _node(_MAPPINGS[kind], list(value), value.values(), model, tensors)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _node(_NAMED_TUPLE, _described(kind, kind._fields), value, model, tensors)
    fields = _fields(value)
    if fields is not None:
        return _node(_DATACLASS, _described(kind, fields), fields.values(), model, tensors)
    raise CaptureError(
        f"{model} returns {value!r:.80}, a {kind.__name__}: only tensors and None, in tuples, lists, dicts, named tuples and dataclasses, "
        "can be captured"
    )


def _node(kind: str, context: Any, children: Iterable[Any], model: str, tensors: list[Tensor]) -> dict[str, Any]:
    return {"type": kind, "context": json.dumps(context), "children_spec": [_dump(child, model, tensors) for child in children]}


def _described(kind: type, fields: Iterable[str]) -> tuple[str, ...]:
    described = (kind.__module__, kind.__qualname__, *fields)
    _classes[described] = kind
    return described


def _load(tree: dict[str, Any], outputs: Iterator[Any]) -> Any:
    kind = tree["type"]
    if kind is None:
        return next(outputs)
    items = [_load(child, outputs) for child in tree["children_spec"]]
    if kind == _NOTHING["type"]:
        return None
    if kind in (_NAMED_TUPLE, _DATACLASS):
        described = tuple(json.loads(tree["context"]))
        return _class_of(described, is_tuple=kind == _NAMED_TUPLE)(**dict(zip(described[2:], items, strict=True)))
    if _TYPES[kind] in _SEQUENCES:
        return _TYPES[kind](items)
    return _TYPES[kind](zip(json.loads(tree["context"]), items, strict=True))


def _class_of(described: tuple[str, ...], *, is_tuple: bool) -> type:
    if described not in _classes:
        module, name, *fields = described
        # Only what is imported already: a file must not cause an import.
        known = vars(sys.modules[module]).get(name) if module in sys.modules else None
        if isinstance(known, type) and _has_fields(known, fields, is_tuple=is_tuple):
            _classes[described] = known
        else:
            short = name.rpartition(".")[2]
            _classes[described] = namedtuple(short, fields) if is_tuple else dataclasses.make_dataclass(short, fields)
    return _classes[described]


def _has_fields(kind: type, fields: Sequence[str], *, is_tuple: bool) -> bool:
    if is_tuple:
        return issubclass(kind, tuple) and getattr(kind, "_fields", None) == tuple(fields)
    return dataclasses.is_dataclass(kind) and [field.name for field in dataclasses.fields(kind)] == list(fields)
