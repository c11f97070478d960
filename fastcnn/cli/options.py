"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcnn.cores import usable_cores
from fastcnn.errors import RequestError, WeightsError
from fastcnn.weight_files import means_file


class DatasetName(StrEnum):
    """The datasets that `train` and `evaluate` read."""

    mnist = "mnist"
    fashion_mnist = "fashion-mnist"
    cifar10 = "cifar10"
    imagefolder = "imagefolder"


class Device(StrEnum):
    """Where a network runs."""

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


def own_spelling(given: Any) -> Any:
    """Names of models as the table spells them: `ResNet50` becomes resnet50, and `ResNet50@openvino` resnet50@openvino.

    What means no model, and what is a file, stays as it is: the command says what it thinks of it.
    """
    if isinstance(given, list):
        return [own_spelling(one) for one in given]
    if not isinstance(given, str) or Path(given).exists():
        return given
    from fastcnn.models.registry import resolve

    name, at, backend = given.rpartition("@") if "@" in given else (given, "", "")
    return f"{resolve(name) or name}{at}{backend}"


def existing_weights(given: str | None) -> None:
    """Raises WeightsError where --weights means a file that is not there: that is told before PyTorch is imported."""
    if given is not None and means_file(given) and not Path(given).exists():
        raise WeightsError(f"weight file {given} does not exist")


def default_workers() -> int:
    """Processes that decode pictures, where `--workers` does not say: one a core, but for the one that the network runs on."""
    return min(8, usable_cores() - 1)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name that `fastcnn list` prints.",
        autocompletion=complete_model,
        callback=own_spelling,
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="W",
        help="Of a model: a .safetensors or .pth file, a torchvision weights name, or mnist.  [default: seeded random weights]",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="The seed of random weights.  [default: 0]")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]

Dataset = Annotated[DatasetName, typer.Option("--dataset", case_sensitive=False, help="What to read.", show_default=False)]
DataFolder = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Where torchvision finds the dataset, or a folder with one folder of pictures per class (in train, val and test, or straight in it).",
        show_default=False,
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch the dataset into DIR.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads.  [default: PyTorch's own count]")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, metavar="N", help="Processes that decode picture files.  [default: one less than there are cores, 8 at most]"),
]
WeightsSetOption = Annotated[
    WeightsSet | None,
    typer.Option(
        "--weights-set",
        case_sensitive=False,
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
