"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def complete_model(incomplete: str) -> list[str]:
    """Shell completion of a model's name."""
    from fastcnn.models.registry import list_models

    return list_models(f"{incomplete}*")


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name that `fastcnn list` prints.", autocompletion=complete_model, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]
