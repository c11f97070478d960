"""Operations that are none of PyTorch's own: torchvision's, and those that users register with `torch.library`."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import fx
from torch._library.custom_ops import OPDEFS

# Of PyTorch itself; the last one is what its INT8 graphs are written in.
_PYTORCH = ("aten", "prims", "quantized_decomposed")
# Namespace → the package whose import registers it, of what fastcnn depends on itself.
_KNOWN = {"torchvision": "torchvision"}


def foreign_calls(graph: fx.Graph) -> list[fx.Node]:
    """The calls of operations that another library registered, in order."""
    return [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _PYTORCH]


def libraries_of(graph: fx.Graph) -> dict[str, str]:
    """Namespace → the module whose import registers it, of every call of an operation that is not PyTorch's own."""
    targets: list[Any] = [node.target for node in foreign_calls(graph)]
    return {target.namespace: library_of(target) for target in targets}


def spelled(target: torch._ops.OpOverload) -> str:
    """As its library registers it: `torchvision::deform_conv2d`."""
    return target._schema.name


def library_of(target: torch._ops.OpOverload) -> str:
    """The module whose import registers the operation, where that is known; else its namespace."""
    definition: Any = OPDEFS.get(spelled(target))
    made_in = getattr(getattr(definition, "_init_fn", None), "__module__", None)
    return _KNOWN.get(target.namespace) or (made_in if made_in not in (None, "__main__") else target.namespace)


def why_not_kept(target: torch._ops.OpOverload) -> str | None:
    """Why a file must not name this operation; None where it may.

    An operation that takes a string may take the name of a file, and one that writes to what it is given changes what is outside
    the graph: whoever made a file could reach out with them.
    """
    schema = target._schema
    if schema.is_mutable:
        return "it writes to what it is given"
    if any("str" in str(argument.type) for argument in schema.arguments):
        return "it takes a string, which could name a file"
    return None


def find_operation(namespace: str, packet: str, overload: str) -> torch._ops.OpOverload | None:
    """The registered operation of that name; None where this process has none, or none that a file may name.

    The package is imported for a namespace of fastcnn's own dependencies alone: which others are imported is for the user to say.
    """
    if namespace in _KNOWN:
        importlib.import_module(_KNOWN[namespace])
    if not all(part.isidentifier() for part in (namespace, packet, overload)):
        return None
    found = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
    return found if isinstance(found, torch._ops.OpOverload) and why_not_kept(found) is None else None
