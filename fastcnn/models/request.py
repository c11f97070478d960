"""A model as it is asked for, in plain data that another process can be handed; and what a model from elsewhere says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastcnn.errors import RequestError
from fastcnn.models.sources import Kind, ModelText, read_model_text
from fastcnn.preprocessing import Preprocessing


@dataclass(frozen=True)
class ModelRequest:
    """A MODEL and the options that belong to it, before anything of it is loaded.

    Attributes:
        model: what `sources.read_model_text` reads.
        weights: a weight file, or a name of weights; None for seeded random ones, or those that the user's code makes.
        seed: of random weights.
        weights_set: "ema" or "plain", where a file holds both.
        num_classes, transform_input: options of the model; None for its own.
        model_args: further ones, as NAME=VALUE.
        input_shape: (C, H, W) of one input, for models that do not say it.
        image_size: height and width, in place of the model's own.
    """

    model: str
    weights: str | None = None
    seed: int = 0
    weights_set: str | None = None
    num_classes: int | None = None
    transform_input: bool | None = None
    model_args: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    image_size: int | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelRequest:
        """From the fields by name, as JSON brings them back: lists for tuples."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return cls(**values)

    def read(self) -> ModelText:
        """The model's text, taken apart. Raises RequestError for one that means no model, and for options that cannot go with it."""
        text = read_model_text(self.model)
        given = {
            "--num-classes": self.num_classes is not None,
            "--transform-input": self.transform_input is not None,
            "--model-arg": bool(self.model_args),
            "--weights-set": self.weights_set is not None and text.kind is not Kind.program,
        }
        options = [option for option, is_given in given.items() if is_given]
        if options and text.kind in (Kind.program, Kind.onnx, Kind.weights):
            raise RequestError(f"{options[0]} is for the name of a model, and {self.model} is a file")
        if self.input_shape is not None and self.image_size is not None:
            raise RequestError("--input-shape and --image-size both say how large the input is: give one of them")
        return text

    def read_model(self) -> ModelText:
        """As `read`, for what a module is to be made of. Raises RequestError, with the way out, for a file from which none comes."""
        text = self.read()
        if text.kind is Kind.onnx:
            raise RequestError(
                f"{text.text} is an ONNX file, from which PyTorch gets no model: give the model that it was made from; "
                "bench, info, predict and verify --against take the file itself"
            )
        if text.kind is Kind.weights:
            raise RequestError(
                f"{text.text} holds weights, or a finished module, and no model to build: name the model, as in MODEL --weights {text.text}"
            )
        return text


@dataclass(frozen=True)
class SourceInfo:
    """What a model is that is none of ours; stands on it as the plain attribute `fastcnn_info`, with the names of `registry.ModelInfo`.

    Attributes:
        name: its MODEL text, as in "timm:efficientnet_b0".
        options: the keywords that it was built with.
        weights: where its weights come from.
        input_size: of one input, without the batch.
        preprocessing: from a picture to its input, where its library or its weights declare one.
        categories: the names of the classes, where they are known.
        weights_sha256: see `registry.ModelInfo`.
    """

    name: str
    options: Mapping[str, Any]
    weights: str
    input_size: tuple[int, ...]
    preprocessing: Preprocessing | None = None
    categories: tuple[str, ...] | None = field(default=None, repr=False)
    weights_sha256: str | None = None


def parse_input_shape(text: str) -> tuple[int, ...]:
    """`3x224x224`, with x, × or commas between the numbers -> (3, 224, 224). Raises RequestError for anything but sizes from 1."""
    parts = [part.strip() for part in text.replace("×", "x").replace(",", "x").lower().split("x")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise RequestError(f"--input-shape is the sizes of one input without the batch, as in 3x224x224; it is {text!r}")
    return tuple(int(part) for part in parts)
