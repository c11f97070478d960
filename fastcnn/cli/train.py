"""`fastcnn train`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import DataFolder, Dataset, Device, Download, Json, Model, Threads, Workers, default_workers
from fastcnn.cli.progress import Advance, progress_bar
from fastcnn.errors import RequestError

if TYPE_CHECKING:
    from fastcnn.training.history import EpochRecord
    from fastcnn.training.recipe import Recipe
    from fastcnn.training.trainer import TrainingResult


class Schedule(StrEnum):
    """What `--schedule` takes."""

    constant = "constant"
    cosine = "cosine"


def train(
    model: Model,
    dataset: Dataset,
    data: DataFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for weights, curves and checkpoint.  [default: runs/MODEL-DATASET]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes over the training pictures.  [default: 10]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Pictures a step.  [default: 64]")] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Learning rate at the start.  [default: 0.01]")] = None,
    momentum: Annotated[float | None, typer.Option(metavar="X", help="Of stochastic gradient descent.  [default: 0.9]")] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="X", help="L2 penalty.  [default: 0]")] = None,
    schedule: Annotated[Schedule | None, typer.Option(case_sensitive=False, help="How the learning rate goes on.  [default: constant]")] = None,
    aux_weight: Annotated[float | None, typer.Option(metavar="X", help="What the loss of an auxiliary head counts.  [default: 0.3]")] = None,
    augment: Annotated[bool, typer.Option("--augment", help="Shift training pictures at random, and mirror those in colour.")] = False,
    validation: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Pictures held out to choose the best epoch on.  [default: a tenth, 5000 at most]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of everything random.  [default: 0]")] = None,
    weights: Annotated[str | None, typer.Option(metavar="W", help="Weights to start from.  [default: seeded random weights]")] = None,
    device: Annotated[Device, typer.Option(case_sensitive=False, help="Where to train.")] = Device.cpu,
    autocast: Annotated[bool, typer.Option(help="Compute in 16 bits on CUDA.")] = True,
    threads: Threads = None,
    workers: Workers = None,
    download: Download = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in DIR, with the recipe of that run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start again where DIR holds a checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model, keep the best epoch, and count it on the test pictures. Ctrl-C leaves a checkpoint that --resume goes on from."""
    from fastcnn.models.registry import model_spec

    folder = out or Path("runs") / f"{model_spec(model).name}-{dataset.value}"
    if resume and force:
        raise RequestError("--resume goes on and --force starts again: give one of them")
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule and schedule.value,
        "aux_weight": aux_weight,
        "augment": augment or None,
        "validation": validation,
        "seed": seed,
    }
    recipe = _recipe({name: value for name, value in given.items() if value is not None}, folder if resume else None)
    import torch

    from fastcnn.training.setup import RunSettings
    from fastcnn.training.setup import train as run

    if device is Device.cuda and not torch.cuda.is_available():
        raise RequestError("--device cuda: PyTorch finds no CUDA device here")
    if threads is not None:
        torch.set_num_threads(threads)
    title = f"{model} on {dataset.value}"
    with progress_bar(title) as advance:
        try:
            result = run(
                model,
                dataset.value,
                data,
                folder,
                recipe,
                weights=weights,
                settings=RunSettings(
                    device=device.value,
                    autocast=autocast and device is Device.cuda,
                    workers=default_workers() if workers is None else workers,
                    download=download,
                    resume=resume,
                    force=force,
                ),
                progress=_Progress(title, recipe.epochs, advance),
            )
        except KeyboardInterrupt:
            if (folder / "checkpoint.pt").exists():
                output.note(f"{folder} holds a checkpoint: the same command with --resume goes on from it")
            raise
    if as_json:
        output.print_json(to_dict(result))
    else:
        _print(result)


def _recipe(given: dict[str, Any], resumed: Path | None) -> Recipe:
    """The recipe asked for; of a resumed run its own, which what is given must not contradict."""
    from fastcnn.training.recipe import Recipe

    if resumed is None:
        return Recipe(**given)
    from fastcnn.training.checkpoint import load_checkpoint

    recipe = Recipe.from_dict(load_checkpoint(resumed / "checkpoint.pt")["recipe"])
    for name, value in given.items():
        if getattr(recipe, name) != value:
            raise RequestError(f"the run in {resumed} has {name.replace('_', ' ')} {getattr(recipe, name)}, not {value}: --resume keeps its recipe")
    return recipe


def to_dict(result: TrainingResult) -> dict[str, Any]:
    """The answer as plain data."""
    return {
        "weights": result.weights,
        "best_epoch": result.best_epoch,
        "history": [asdict(record) for record in result.history],
        "test": result.test,
    }


def _print(result: TrainingResult) -> None:
    output.print_table(
        ("epoch", "lr", "train loss", "train accuracy", "validation loss", "validation accuracy", "seconds"),
        [
            (
                record.epoch,
                f"{record.learning_rate:.2g}",
                f"{record.train_loss:.4f}",
                f"{record.train_accuracy:.2%}",
                f"{record.validation_loss:.4f}",
                f"{record.validation_accuracy:.2%}" + (" best" if record.epoch == result.best_epoch else ""),
                f"{record.seconds:.1f}",
            )
            for record in result.history
        ],
        right=("epoch", "lr", "train loss", "train accuracy", "validation loss", "seconds"),
        spare=("lr", "seconds"),
    )
    test = result.test
    print()
    output.print_fields(
        {
            "best epoch": result.best_epoch,
            "test": None if test is None else f"{test.correct:,} of {test.pictures:,} right ({test.top1:.2%}), loss {test.loss:.4f}",
            "weights": result.weights,
        }
    )


class _Progress:
    """A bar through the steps of each epoch, and a line at its end."""

    def __init__(self, title: str, epochs: int, advance: Advance) -> None:
        self.title, self.epochs, self.advance = title, epochs, advance

    def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
        self.advance(done, steps, f"{self.title}: epoch {epoch}/{self.epochs}, loss {loss:.4f}")

    def epoch(self, record: EpochRecord, best: bool) -> None:
        output.line(
            f"epoch {record.epoch}/{self.epochs}: loss {record.train_loss:.4f}, validation loss {record.validation_loss:.4f}, "
            f"accuracy {record.validation_accuracy:.2%}{' (best)' if best else ''}, {record.seconds:.1f} s"
        )
