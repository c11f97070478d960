"""`fastcnn evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.exit_codes import CHECK_FAILED
from fastcnn.cli.options import (
    DataFolder,
    Dataset,
    Device,
    Download,
    Force,
    ImageSize,
    InputShape,
    Json,
    ModelArgs,
    NumClasses,
    Seed,
    Threads,
    TransformInput,
    Weights,
    WeightsSetOption,
    Workers,
    complete_model,
    default_workers,
    model_request,
    own_spelling,
)
from fastcnn.cli.progress import progress_bar
from fastcnn.errors import RequestError
from fastcnn.files import check_target

if TYPE_CHECKING:
    from fastcnn.data.pictures import Pictures
    from fastcnn.evaluation.evaluator import Evaluation
    from fastcnn.evaluation.metrics import Metrics
    from fastcnn.preprocessing import Preprocessing

_SHEET_PICTURES = 64


class Split(StrEnum):
    """What `--split` takes."""

    train = "train"
    validation = "validation"
    test = "test"


def evaluate(
    dataset: Dataset,
    data: DataFolder,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE_OR_MODEL",
            help="A model's name, torchvision:NAME, timm:NAME, FILE.py:callable, a weight file of `fastcnn train`, a file of `fastcnn export` or "
            "fastcnn.save, or any .onnx or .pt2 file. An @ and a backend may follow, as in simple_cnn@onnxruntime.",
            autocompletion=complete_model,
            callback=own_spelling,
        ),
    ] = None,
    weights: Weights = None,
    weights_set: WeightsSetOption = None,
    num_classes: NumClasses = None,
    transform_input: TransformInput = None,
    model_arg: ModelArgs = None,
    image_size: ImageSize = None,
    input_shape: InputShape = None,
    seed: Seed = None,
    backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What runs a source that names none itself.  [default: a model runs as it is, a file in its runtime]"),
    ] = None,
    device: Annotated[Device, typer.Option(case_sensitive=False, help="Where models run.")] = Device.cpu,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Evaluate these two, and count the pictures on which they disagree.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE", help="Of --compare: draw the pictures on which they disagree, as PNG.")] = None,
    confusion: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the confusion matrix, as PNG.")] = None,
    min_top1: Annotated[float | None, typer.Option(min=0, max=1, metavar="X", help="Exit code 1 if the top-1 accuracy is below X.")] = None,
    split: Annotated[Split, typer.Option(case_sensitive=False, help="Which part of the dataset.")] = Split.test,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Take N pictures only, evenly spaced.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Pictures that run at once.  [default: 250, fewer of large pictures]")
    ] = None,
    threads: Threads = None,
    workers: Workers = None,
    download: Download = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Count the answers of models and files on a labelled dataset, through the preprocessing of each."""
    names = list(dict.fromkeys([*(sources or []), *(compare or ())]))
    _check(names, compare, sheet, confusion, force)
    import torch

    from fastcnn.evaluation.evaluator import disagreements, evaluate as run, is_model, load_candidate, split_backend  # isort: skip
    from fastcnn.evaluation.figures import plot_confusion, plot_disagreements

    if threads is not None:
        torch.set_num_threads(threads)
    models = [name for name in names if is_model(split_backend(name)[0])]
    if weights is not None and not models:
        raise RequestError(f"--weights is for the name of a model; {' and '.join(names)} hold{'s' if len(names) == 1 else ''} weights already")
    requests = {
        name: model_request(
            split_backend(name)[0],
            weights=weights,
            seed=seed,
            num_classes=num_classes,
            transform_input=transform_input,
            model_args=model_arg,
            weights_set=weights_set,
            image_size=image_size,
            input_shape=input_shape,
        )
        for name in models
    }
    if not models and any((num_classes, model_arg, weights_set, transform_input is not None, image_size, input_shape)):
        raise RequestError(
            "--num-classes, --transform-input, --model-arg, --weights-set, --image-size and --input-shape are for the name of a model, "
            f"and {names[0]} is a file"
        )
    decoders = default_workers() if workers is None else workers
    opened: dict[Preprocessing, Pictures] = {}
    results: dict[str, Evaluation] = {}
    for name in names:
        with output.working(f"loading {name}"):
            predictor = load_candidate(name, backend=backend, request=requests.get(name), device=device.value)
            if predictor.has_random_weights:
                output.note(f"{name} has seeded random weights (seed {seed or 0}); --weights gives it trained ones")
            if predictor.preprocessing not in opened:
                opened[predictor.preprocessing] = _open(dataset.value, data, split.value, predictor.preprocessing, download)
        pictures = opened[predictor.preprocessing]
        with progress_bar(name) as advance:
            results[name] = run(predictor, pictures, source=name, limit=limit, batch_size=batch_size, workers=decoders, progress=advance)
    pictures = next(iter(opened.values()))
    differing = None
    if compare is not None:
        first, second = results[compare[0]], results[compare[1]]
        differing = disagreements(first, second, pictures, drawn=0 if sheet is None else _SHEET_PICTURES)
        if sheet is not None:
            plot_disagreements(differing[:_SHEET_PICTURES], sheet, _sheet_title(compare, len(differing), len(first.answers)))
    if confusion is not None:
        plot_confusion(results[names[0]].metrics, confusion, f"{Path(names[0]).name} on {pictures.name}")
    if as_json:
        output.print_json(_to_dict(dataset.value, pictures, results, compare, differing))
    else:
        _print(results, compare, differing)
    for path in (sheet, confusion):
        if path is not None:
            output.note(f"drawn in {path}")
    low = [name for name in names if min_top1 is not None and results[name].metrics.top1 < min_top1]
    if low:
        output.error(f"the top-1 accuracy of {' and '.join(low)} is below {min_top1:g}")
        raise typer.Exit(CHECK_FAILED)


def _check(names: Sequence[str], compare: tuple[str, str] | None, sheet: Path | None, confusion: Path | None, force: bool) -> None:
    """Finds out before the work."""
    if not names:
        raise RequestError("name a model or file to evaluate, or two with --compare")
    if compare is not None and compare[0] == compare[1]:
        raise RequestError(f"--compare takes two different models or files, not {compare[0]} twice; a backend may follow: {compare[0]}@onnxruntime")
    if sheet is not None and compare is None:
        raise RequestError("--sheet shows where two candidates disagree: give --compare A B")
    if confusion is not None and len(names) > 1:
        raise RequestError("--confusion draws the matrix of one model or file: name one")
    for path, option in ((sheet, "--sheet"), (confusion, "--confusion")):
        if path is not None:
            check_target(path, force, option)


def _open(dataset: str, data: Path, split: str, preprocessing: Preprocessing, download: bool) -> Pictures:
    from fastcnn.data.datasets import open_dataset

    return open_dataset(dataset, data, split, preprocessing, download=download)  # type: ignore[arg-type]


def _sheet_title(compare: tuple[str, str], differing: int, pictures: int) -> str:
    shown = f", the first {_SHEET_PICTURES}" if differing > _SHEET_PICTURES else ""
    return f"{Path(compare[0]).name} | {Path(compare[1]).name}: {differing:,} of {pictures:,} pictures differ{shown}"


def _to_dict(
    dataset: str, pictures: Pictures, results: dict[str, Evaluation], compare: tuple[str, str] | None, differing: Sequence[Any] | None
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "dataset": dataset,
        "part": pictures.name,
        "results": [
            {"source": result.source, "runtime": result.runtime, "counted_by": result.counted_by, **result.metrics.to_dict()}
            for result in results.values()
        ],
    }
    if compare is not None and differing is not None:
        answer["compare"] = {
            "sources": compare,
            "differing": len(differing),
            "pictures": [{"picture": item.where, "class": item.label, "answers": [item.first, item.second]} for item in differing],
        }
    return answer


def _print(results: dict[str, Evaluation], compare: tuple[str, str] | None, differing: Sequence[Any] | None) -> None:
    if len(results) == 1:
        (only,) = results.values()
        _print_one(only)
    else:
        output.print_table(
            ("source", "runtime", "right", "pictures", "top-1", "top-5", "loss"),
            [(result.source, result.runtime, *_figures(result.metrics)) for result in results.values()],
            right=("right", "pictures", "top-1", "top-5", "loss"),
        )
    if compare is not None and differing is not None:
        print()
        output.print_fields({"disagree": f"{len(differing):,} of {len(next(iter(results.values())).answers):,} pictures"})
        if differing:
            output.print_table(
                ("picture", "class", *compare), [(item.where, item.label, item.first, item.second) for item in differing[:_SHEET_PICTURES]]
            )


def _print_one(result: Evaluation) -> None:
    metrics = result.metrics
    right, pictures, top1, top5, loss = _figures(metrics)
    output.print_table(
        ("class", "pictures", "right", "recall", "precision"),
        [
            (row.name, row.pictures, row.correct, *(None if share is None else f"{share:.2%}" for share in (row.recall, row.precision)))
            for row in metrics.per_class()
        ],
        right=("pictures", "right", "recall", "precision"),
    )
    print()
    output.print_fields(
        {"source": result.source, "runtime": result.runtime, "top-1": f"{top1}, {right:,} of {pictures:,}", "top-5": top5, "loss": loss}
    )


def _figures(metrics: Metrics) -> tuple[int, int, str, str, str]:
    return metrics.correct, metrics.pictures, f"{metrics.top1:.2%}", f"{metrics.top5:.2%}", f"{metrics.loss:.4f}"
