"""How a model packs its output tensors, as JSON: tuples, lists, dicts and named tuples of any depth.

The notation is that of PyTorch's pytrees, `[1, {"type", "context", "children_spec"}]`, with a form of its own for named tuples, which PyTorch writes
only where their class was registered. A named tuple whose class is not at hand where a file is loaded comes back as one of the same name and fields.
"""

from __future__ import annotations

import json
import operator
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastcnn.errors import CaptureError, FileFormatError

_PROTOCOL = 1
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_SEQUENCES: dict[type, str] = {tuple: "builtins.tuple", list: "builtins.list"}
_MAPPINGS: dict[type, str] = {dict: "builtins.dict", OrderedDict: "collections.OrderedDict"}
_TYPES: dict[str, type] = {name: type_ for type_, name in (*_SEQUENCES.items(), *_MAPPINGS.items())}
_NAMED_TUPLE = "collections.namedtuple"

# Classes met in this process, by what a file holds of them.
_classes: dict[tuple[str, ...], type] = {}


def structure_to_json(skeleton: Any, model: str) -> str:
    """`skeleton`: the output of the model called `model`, with the position in the flat list in the place of each tensor.

    Raises:
        CaptureError: a container of another type.
    """
    return json.dumps([_PROTOCOL, _dump(skeleton, model)])


def packer(structure: str) -> Callable[[Sequence[Any]], Any]:
    """The inverse: a function that packs a flat list of outputs as `structure` says.

    Raises:
        FileFormatError: `structure` is not what `structure_to_json` returns.
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


def _dump(value: Any, model: str) -> dict[str, Any]:
    if isinstance(value, int):
        return _LEAF
    kind = type(value)
    if kind in _SEQUENCES:
        return {"type": _SEQUENCES[kind], "context": "null", "children_spec": [_dump(item, model) for item in value]}
    if kind in _MAPPINGS and all(isinstance(key, (str, int)) for key in value):
        return {"type": _MAPPINGS[kind], "context": json.dumps(list(value)), "children_spec": [_dump(item, model) for item in value.values()]}
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        described = (kind.__module__, kind.__qualname__, *kind._fields)
        _classes[described] = kind
        return {"type": _NAMED_TUPLE, "context": json.dumps(described), "children_spec": [_dump(item, model) for item in value]}
    raise CaptureError(f"{model} returns a {kind.__name__}: only tensors in tuples, lists, dicts and named tuples can be captured")


def _load(tree: dict[str, Any], outputs: Iterator[Any]) -> Any:
    kind = tree["type"]
    if kind is None:
        return next(outputs)
    items = [_load(child, outputs) for child in tree["children_spec"]]
    if kind == _NAMED_TUPLE:
        return _class_of(tuple(json.loads(tree["context"])))(*items)
    if _TYPES[kind] in _SEQUENCES:
        return _TYPES[kind](items)
    return _TYPES[kind](zip(json.loads(tree["context"]), items, strict=True))


def _class_of(described: tuple[str, ...]) -> type:
    if described not in _classes:
        module, name, *fields = described
        # Only what is imported already: a file must not cause an import.
        known = vars(sys.modules[module]).get(name) if module in sys.modules else None
        same = isinstance(known, type) and issubclass(known, tuple) and getattr(known, "_fields", None) == tuple(fields)
        _classes[described] = known if same and known is not None else namedtuple(name.rpartition(".")[2], fields)
    return _classes[described]
