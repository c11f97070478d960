"""`fastcnn list`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import Json, complete_model
from fastcnn.errors import UnknownNameError

if TYPE_CHECKING:
    from fastcnn.models.registry import ModelSpec


def list_models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help='A name with wildcards, as in "inception*".', autocompletion=complete_model, show_default=False)
    ] = "*",
    as_json: Json = False,
) -> None:
    """List the models, or those whose name matches PATTERN."""
    from fastcnn.models import registry

    names = registry.list_models(pattern)
    if not names:
        raise UnknownNameError("model", pattern, registry.list_models("*"), hint='`fastcnn list` shows all; a pattern has wildcards, as in "resnet*"')
    specs = [registry.model_spec(name) for name in names]
    if as_json:
        output.print_json([_as_object(spec) for spec in specs])
    else:
        output.print_table(("name", "input", "description"), [(spec.name, output.shape(spec.input_size), spec.description) for spec in specs])


def _as_object(spec: ModelSpec) -> dict[str, Any]:
    """Everything that the table of models holds but the place of the code."""
    return {key: value for key, value in dataclasses.asdict(spec).items() if key != "builder"}
