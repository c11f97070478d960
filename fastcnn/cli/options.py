"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcnn.errors import RequestError


class Device(StrEnum):
    """What `--device` takes."""

    cpu = "cpu"
    cuda = "cuda"


class WeightsSet(StrEnum):
    """What `--weights-set` takes."""

    ema = "ema"
    plain = "plain"


def complete_model(incomplete: str) -> list[str]:
    """Shell completion of a model's name."""
    from fastcnn.models.registry import list_models

    return list_models(f"{incomplete}*")


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name that `fastcnn list` prints.", autocompletion=complete_model, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]

Weights = Annotated[
    str | None,
    typer.Option(
        "--weights", metavar="W", help="A weight file, a torchvision weights name, or mnist.  [default: seeded random weights]", show_default=False
    ),
]
WeightsSetOption = Annotated[
    WeightsSet | None,
    typer.Option(
        "--weights-set",
        help="Which weights to take of a file that holds their moving average (ema) beside them (plain).  [default: ema, where there is one]",
        show_default=False,
    ),
]
NumClasses = Annotated[int | None, typer.Option("--num-classes", min=1, metavar="N", help="Classes of the model.  [default: the model's own]")]
TransformInput = Annotated[
    bool | None,
    typer.Option(
        "--transform-input/--no-transform-input",
        help="Of inception_v3 and googlenet: take ImageNet's normalisation, or [-1, 1].  [default: as the weights need it]",
        show_default=False,
    ),
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="NAME=VALUE", help="A keyword of the model, such as dropout=0.2. May be given again.", show_default=False),
]


def model_options(
    model: str, *, num_classes: int | None, transform_input: bool | None, model_args: Sequence[str] | None, weights_set: WeightsSet | None
) -> dict[str, Any]:
    """The options of a model, as given on the command line, as keywords of `create_model`; those not given are left out.

    Imports torch only where there is a --model-arg. Raises UnknownNameError for an unknown model, RequestError for an
    option that the model lacks, a value that is not of its type, or one that is given in two ways.
    """
    from fastcnn.models.registry import model_spec

    given = {"num_classes": num_classes, "transform_input": transform_input}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if model_args:
        from fastcnn.models.arguments import parse_arguments

        if Path(model).is_file():
            raise RequestError(f"--model-arg is for the name of a model, and {model} is a file")
        arguments = parse_arguments(model_spec(model).load_builder(), model_args, model)
        twice = [name for name in arguments if name in options]
        if twice:
            raise RequestError(f"{twice[0]} is given both as an option and as --model-arg: give it once")
        options |= arguments
    return options if weights_set is None else {**options, "weights_set": weights_set.value}
