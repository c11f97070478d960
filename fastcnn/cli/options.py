"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcnn.cores import usable_cores
from fastcnn.errors import WeightsError

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")


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


def existing_weights(given: str | None) -> str | None:
    """What --weights says, unless it means a file that is not there: that is told before PyTorch is imported."""
    if given is not None and (given.endswith(WEIGHT_SUFFIXES) or os.sep in given) and not Path(given).exists():
        raise WeightsError(f"weight file {given} does not exist")
    return given


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
        callback=existing_weights,
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
