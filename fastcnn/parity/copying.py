"""A copy of a model to run in another dtype, of one that holds what cannot be copied too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def copy_module(model: nn.Module) -> nn.Module:
    """A deep copy, in which a lock, an open file, a generator or whatever else refuses to be copied is the model's own."""
    try:
        return copy.deepcopy(model)
    except Exception:  # whatever the type of an attribute raises
        return copy.deepcopy(model, {id(value): value for value in _plain_values(model) if not _can_be_copied(value)})


def _plain_values(model: nn.Module) -> Iterator[object]:
    """Attributes of the modules beside parameters, buffers and submodules."""
    for module in model.modules():
        yield from (value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules"))


def _can_be_copied(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # as above
        return False
    return True
