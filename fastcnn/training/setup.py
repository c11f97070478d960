"""From names to a finished run: model, pictures and folder put together."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastcnn.data.datasets import has_part, hold_out, open_dataset
from fastcnn.data.pictures import Pictures
from fastcnn.errors import RequestError
from fastcnn.models import create_model, create_untrained_model, model_spec
from fastcnn.preprocessing import Preprocessing
from fastcnn.training.recipe import Recipe
from fastcnn.training.trainer import CHECKPOINT, Parts, Progress, Trainer, TrainingResult

_MOST_VALIDATION = 5000


@dataclass(frozen=True)
class RunSettings:
    """How a run is carried out; what it learns is the recipe's.

    Attributes:
        device, autocast, workers: see `Trainer`.
        download: see `open_dataset`.
        resume: go on from the checkpoint in the folder, which must belong to the same run.
        force: start again where the folder holds a checkpoint.
    """

    device: str | torch.device = "cpu"
    autocast: bool = False
    workers: int = 0
    download: bool = False
    resume: bool = False
    force: bool = False


def train(
    model: str,
    dataset: str,
    data: str | Path,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    settings: RunSettings = RunSettings(),
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a reference model on a dataset.

    The best epoch is chosen on pictures that took no part in training, and its weights are then counted, once, on the test pictures.

    Args:
        model: one of `list_models()`; it gets as many classes as the dataset has.
        dataset, data: see `open_dataset`.
        folder: what the run leaves goes there: the best weights as MODEL.safetensors, history.csv, curves.png, checkpoint.pt. Made if missing.
        recipe: how to train; the defaults of `Recipe`.
        weights: to start from, as in `create_model`; they must have the dataset's number of classes.
        settings: where and how it runs.
        progress: hears how far the run is.

    Raises:
        UnknownNameError, WeightsError: no such model, dataset or weights.
        RequestError: pictures that are missing, damaged or do not fit, a folder that cannot be used, a loss that became infinite.
        KeyboardInterrupt: on Ctrl-C, and its subclass Terminated on SIGTERM, after a checkpoint was written.
    """
    recipe, folder, spec = recipe or Recipe(), Path(folder), model_spec(model)
    _check_folder(folder, settings)
    network = None if weights is None else create_model(model, weights)
    info: Any = spec if network is None else network.fastcnn_info
    recipe, parts = _open_parts(dataset, data, info.preprocessing, recipe, settings.download)
    count = len(parts.train.classes)
    if network is None:
        network = create_untrained_model(model, seed=recipe.seed, num_classes=count)
    elif info.options["num_classes"] != count:
        raise RequestError(f"{parts.train.name} has {count} classes, and the weights {weights} another number of them")
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(settings.device)
    trainer = Trainer(network, recipe, parts, dataset, folder, device=device, autocast=settings.autocast, workers=settings.workers)
    if settings.resume:
        trainer.resume()
    try:
        return trainer.run(progress)
    except torch.OutOfMemoryError as error:
        raise RequestError(f"{device} has too little memory for batches of {recipe.batch_size}: give a smaller batch size") from error


def _check_folder(folder: Path, settings: RunSettings) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file: name a folder for what the run leaves")
    if (folder / CHECKPOINT).exists() and not settings.resume and not settings.force:
        raise RequestError(f"{folder} holds a checkpoint: --resume goes on from it, --force starts again")
    if settings.resume and not (folder / CHECKPOINT).exists():
        raise RequestError(f"there is no checkpoint in {folder} to resume from")


def _open_parts(dataset: str, data: str | Path, preprocessing: Preprocessing, recipe: Recipe, download: bool) -> tuple[Recipe, Parts]:
    """The pictures, and the recipe with the number of those held out."""
    train = open_dataset(dataset, data, "train", preprocessing, download=download)
    if has_part(dataset, data, "validation"):
        validation = _of_same_classes(open_dataset(dataset, data, "validation", preprocessing), train)
        kept, held_out = torch.arange(len(train)), torch.arange(len(validation))
    else:
        recipe = replace(recipe, validation=recipe.validation or min(_MOST_VALIDATION, max(1, len(train) // 10)))
        assert recipe.validation is not None
        validation = train
        kept, held_out = hold_out(train, recipe.validation, recipe.seed)
    test = _of_same_classes(open_dataset(dataset, data, "test", preprocessing), train) if has_part(dataset, data, "test") else None
    return recipe, Parts(train, kept, validation, held_out, test)


def _of_same_classes(part: Pictures, train: Pictures) -> Pictures:
    if part.classes != train.classes:
        raise RequestError(f"{part.name} and {train.name} must hold the same classes: {_difference(part.classes, train.classes)}")
    return part


def _difference(some: tuple[str, ...], others: tuple[str, ...]) -> str:
    odd = sorted(set(some) ^ set(others))
    return f"{', '.join(odd[:3])} {'is' if len(odd) == 1 else 'are'} in one of them only"
