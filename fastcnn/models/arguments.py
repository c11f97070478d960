"""`NAME=VALUE` from a command line, as keywords of the function that builds a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fastcnn.errors import RequestError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_arguments(build: Callable[..., Any], texts: Sequence[str], who: str) -> dict[str, Any]:
    """`["num_classes=5", "aux_logits=false"]` -> `{"num_classes": 5, "aux_logits": False}`, as the signature of `build` types them.

    A parameter's type is its annotation, else that of its default: bool, int, float or str; a value of a parameter that has
    neither is read as a number, else as true or false, else as text. `who` is what `build` makes, for messages.

    Raises RequestError for a text without `=`, a name that `build` does not take or that is given twice, and a value that is not of its type.
    """
    parameters = inspect.signature(build, eval_str=True).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name, parameter in parameters.items() if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)]
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise RequestError(f"a model argument is NAME=VALUE, not {text!r}; {who} takes {', '.join(known)}")
        if name not in known and not any_name:
            raise RequestError(f"{who} takes no argument {name!r}; it takes {', '.join(known)}")
        if name in values:
            raise RequestError(f"the model argument {name} is given twice: {text!r} is the second")
        values[name] = _parse(name, value.strip(), _type_of(parameters.get(name)))
    return values


def _type_of(parameter: inspect.Parameter | None) -> type | None:
    if parameter is None:
        return None
    if parameter.annotation in (bool, int, float, str):
        return parameter.annotation
    return type(parameter.default) if type(parameter.default) in (bool, int, float, str) else None


def _parse(name: str, text: str, wanted: type | None) -> Any:
    if wanted is None:  # numbers first: a 1 is a number before it is a yes
        return next(value for kind in (int, float, bool, str) if (value := _read(text, kind)) is not None)
    value = _read(text, wanted)
    if value is None:
        what = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[wanted]
        raise RequestError(f"the model argument {name} is {what}, not {text!r}")
    return value


def _read(text: str, kind: type) -> Any | None:
    """The value that a text means as a bool, int, float or str; None where it means none."""
    if kind is bool:
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
    try:
        return kind(text)
    except ValueError:
        return None
