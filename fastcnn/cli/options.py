"""Arguments and options that several commands share."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cores import usable_cores
from fastcnn.errors import RequestError, WeightsError
from fastcnn.weight_files import means_file

if TYPE_CHECKING:
    from fastcnn.models.request import ModelRequest
    from fastcnn.preprocessing import Preprocessing


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
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name that `fastcnn list` prints, torchvision:NAME, timm:NAME, package.module:callable or FILE.py:callable (whose code is run), "
        "or a .pt2 file.",
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
        help="Of a model: a weight file (safetensors, or what torch.save wrote), a torchvision weights name, pretrained for timm's, or mnist.  "
        "[default: seeded random weights]",
    ),
]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, metavar="N", help="Height and width of the input.  [default: the model's own]")]
InputShape = Annotated[
    str | None,
    typer.Option("--input-shape", metavar="CxHxW", help="One input, as in 3x224x224, for a model that does not say it.", show_default=False),
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
PreprocessingFile = Annotated[
    Path | None,
    typer.Option(
        "--preprocessing", metavar="FILE", help="A JSON object that says how a picture becomes the input; `fastcnn predict --help` shows one."
    ),
]


def read_preprocessing(path: Path) -> Preprocessing:
    """The description in a JSON file. Raises RequestError for a file that cannot be read, or holds none."""
    from fastcnn.preprocessing import Preprocessing

    try:
        return Preprocessing.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is no JSON: {error}") from error


def model_request(model: str, **given: Any) -> ModelRequest:
    """The model and its options as they were given on the command line; keywords are those of `ModelRequest`, None for what was not given.

    Imports neither torch nor the user's code. Raises UnknownNameError for a name that means no model, WeightsError for a weight
    file that is not there, and RequestError for options that do not go with each other or with the model.
    """
    from fastcnn.models.request import ModelRequest, parse_input_shape

    if given.get("weights") is not None and given.get("seed") is not None:
        raise RequestError("--seed makes random weights and --weights loads others: give one of them")
    existing_weights(given.get("weights"))
    if given.get("model_args") is not None:
        given["model_args"] = tuple(given["model_args"])
    if given.get("weights_set") is not None:
        given["weights_set"] = given["weights_set"].value
    if given.get("input_shape") is not None:
        given["input_shape"] = parse_input_shape(given["input_shape"])
    request = ModelRequest(model, **{name: value for name, value in given.items() if value is not None})
    return dataclasses.replace(request, model=request.read().text)


def predicting(source: str, **given: Any) -> ModelRequest | str:
    """What `predict` and `evaluate` were asked to run: a model with its options, or a file, which holds all that it needs.

    A .pt2 file stays a file: whether it is one of ours, with its preprocessing in it, its content says. Keywords and errors as in `model_request`.
    """
    from fastcnn.models.sources import Kind, read_model_text

    if read_model_text(source).kind not in (Kind.program, Kind.onnx, Kind.weights):
        return model_request(source, **given)
    if given.get("weights") is not None:
        raise RequestError(f"{source} holds its weights already: give the name of a model to load others into")
    names = {"num_classes": "--num-classes", "transform_input": "--transform-input", "model_args": "--model-arg", "weights_set": "--weights-set"}
    of_models = [option for name, option in names.items() if given.get(name) is not None]
    if of_models:
        raise RequestError(f"{of_models[0]} is for the name of a model, and {source} is a file")
    if given.get("input_shape") is not None or given.get("image_size") is not None:
        return model_request(source, **{name: given.get(name) for name in ("input_shape", "image_size")})
    return source


def say_random(request: ModelRequest, described: Any) -> None:
    """A note where a model has random weights. `described` is what stands on it as `fastcnn_info`."""
    if described.weights.startswith("random"):
        output.note(f"{request.model} has seeded random weights (seed {request.seed}); --weights gives it trained ones")
