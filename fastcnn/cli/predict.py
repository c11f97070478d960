"""`fastcnn predict`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.exit_codes import CHECK_FAILED
from fastcnn.cli.options import (
    Device,
    Force,
    ImageSize,
    InputShape,
    ModelArgs,
    NumClasses,
    PreprocessingFile,
    Seed,
    TransformInput,
    Weights,
    WeightsSetOption,
    complete_model,
    own_spelling,
    predicting,
    read_preprocessing,
)
from fastcnn.cli.predict_parts import FilesPerShard, Goal, PartFormatOption, Ray, RayWorkers, Share, predict_parts
from fastcnn.cli.progress import ProgressMode, work_progress
from fastcnn.errors import RequestError
from fastcnn.files import check_target
from fastcnn.text import json_text

if TYPE_CHECKING:
    from fastcnn.models.request import ModelRequest
    from fastcnn.prediction.predictor import Predictor
    from fastcnn.prediction.run import Answer, Failure


def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_MODEL",
            help="A file of `fastcnn export`, fastcnn.save or `fastcnn train`, any .onnx or .pt2 file, a name that `fastcnn list` prints, "
            "torchvision:NAME, timm:NAME, package.module:callable or FILE.py:callable.",
            autocompletion=complete_model,
            callback=own_spelling,
            show_default=False,
        ),
    ],
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|DIR|GLOB …",
            help="Pictures, folders of pictures, or patterns in quotes; for parts also tars, Parquet files, lists of paths (.txt) and URLs.",
            show_default=False,
        ),
    ],
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
        typer.Option(
            metavar="NAME",
            help="Of a model: torch (the default), onnxruntime, openvino, ncnn, auto or reference; of ONNX: onnxruntime (the default) or openvino.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option(case_sensitive=False, help="Where a model runs.")] = Device.cpu,
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="Classes to show of each picture.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures that run at once.")] = 16,
    workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads that decode pictures.  [default: one a core]")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one a line, in place of the source's own.")] = None,
    preprocessing: PreprocessingFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line on stdout instead of a table.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write the JSON lines to FILE, batch by batch; with --shard or --ray, a folder of parts."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an --output FILE that a stopped run left.")] = False,
    quarantine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the pictures without an answer, and why, as JSON lines.")
    ] = None,
    share: Share = None,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    part_format: PartFormatOption = None,
    files_per_shard: FilesPerShard = None,
    progress: Annotated[
        ProgressMode,
        typer.Option(case_sensitive=False, help="On standard error: a bar where a person watches, or a JSON object a second for a scheduler."),
    ] = ProgressMode.bar,
    force: Force = False,
) -> None:
    """Say what is on pictures. Exit code 1 if a picture could not be read: the others are answered all the same.

    With --shard or --ray the answers go to parts, a file for each shard of the input; a picture that could not be read is a row of its part that says
    so. A rerun makes the parts that are missing.
    """
    unused = {"--json": as_json, "--resume": resume, "--quarantine": quarantine is not None, "--force": force}
    goal = Goal(out, share, ray, ray_workers, part_format, files_per_shard, [option for option, is_given in unused.items() if is_given])
    files: list[str] = []
    if not goal.is_parts:
        _check_options(as_json, out, resume)
        if out is not None and out.is_file() and not (force or resume):
            raise RequestError(f"{out} exists: --force overwrites it, --resume goes on with the answers of a stopped run")
        for path, option in ((out, "--output"), (quarantine, "--quarantine")):
            if path is not None:
                check_target(path, force or resume, option)
        from fastcnn.pictures import find_pictures

        files = find_pictures(pictures)
    request = predicting(
        model,
        weights=weights,
        seed=seed,
        num_classes=num_classes,
        transform_input=transform_input,
        model_args=model_arg,
        weights_set=weights_set,
        image_size=image_size,
        input_shape=input_shape,
    )
    if goal.is_parts:
        from fastcnn.export.options import read_labels
        from fastcnn.scale.job import Asking

        how = None if preprocessing is None else read_preprocessing(preprocessing)
        names = None if labels is None else read_labels(labels)
        predict_parts(Asking(request, backend, how, names, device.value, top_k, batch_size, workers), pictures, goal, progress)
        return
    with output.working(f"loading {model}"):
        predictor = _load(request, backend, device, labels, preprocessing)

    from fastcnn.prediction.answer_file import write_failures
    from fastcnn.prediction.run import Answer

    answers: list[Answer] = []
    failures: list[Failure] = []
    start, earlier, results = _results(predictor, files, out, resume, batch_size=batch_size, top_k=top_k, workers=workers)
    for failure in earlier:
        _report(failure, failures)
    where = None if out is None else str(out)
    with contextlib.closing(results), work_progress(progress, "pictures", where, total=len(files), done=start) as work:
        for result in results:
            if not isinstance(result, Answer):
                _report(result, failures)
            elif as_json:
                print(json_text(result.to_dict()))
            elif out is None:
                answers.append(result)
            work.update(units=1, pictures=1, errors=int(not isinstance(result, Answer)))
    if answers:
        _print(answers)
    if quarantine is not None:
        write_failures(quarantine, failures)
    if out is not None:
        output.note(f"{len(files) - len(failures)} answers of {predictor.name} are in {out}")
    if failures:
        listed = f", listed in {quarantine}" if quarantine is not None else ""
        output.error(f"{len(failures)} of {len(files)} pictures have no answer{listed}")
        raise typer.Exit(CHECK_FAILED)


def _check_options(as_json: bool, out: Path | None, resume: bool) -> None:
    if as_json and out is not None:
        raise RequestError("--output writes JSON lines already: leave --json out")
    if resume and out is None:
        raise RequestError("--resume goes on with a file: name it with --output")


def _load(request: ModelRequest | str, backend: str | None, device: Device, labels: Path | None, preprocessing: Path | None) -> Predictor:
    from fastcnn.export.options import read_labels
    from fastcnn.prediction.loading import load_predictor

    predictor = load_predictor(
        request,
        backend=backend,
        device=device.value,
        preprocessing=None if preprocessing is None else read_preprocessing(preprocessing),
        categories=None if labels is None else read_labels(labels),
    )
    if predictor.has_random_weights:
        output.note(f"{predictor.name} has seeded random weights: its answers mean nothing; --weights gives it trained ones")
    return predictor


def _results(
    predictor: Predictor, files: Sequence[str], out: Path | None, resume: bool, *, batch_size: int, top_k: int, workers: int | None
) -> tuple[int, list[Failure], Any]:
    """(number of the first picture to run, failures before it, a generator of what comes from there on)."""
    from fastcnn.prediction.answer_file import Resumption, continue_answers, plan_resumption
    from fastcnn.prediction.run import predict as run
    from fastcnn.prediction.run import read_input

    plan = Resumption(0, {}, [], 0)
    if out is not None and resume:
        with output.working(f"reading {out}"):
            plan = plan_resumption(out, files, batch_size, lambda file: read_input(predictor, file))
        if plan.answered:
            output.note(f"{out} holds {len(plan.answered)} answers already")
    results = run(predictor, files[plan.start :], batch_size=batch_size, top_k=top_k, workers=workers)
    return plan.start, plan.failures, results if out is None else continue_answers(out, plan, results)


def _report(failure: Failure, failures: list[Failure]) -> None:
    output.warning(f"{failure.file}: {failure.reason}")
    failures.append(failure)


def _print(answers: Sequence[Answer]) -> None:
    """A row per picture and class; the name of the picture stands in its first row."""
    rows: list[tuple[object, ...]] = []
    for answer in answers:
        for rank, guess in enumerate(answer.top):
            rows.append((answer.file if rank == 0 else None, rank + 1, guess.label or f"class {guess.index}", f"{guess.probability:.2%}"))
    output.print_table(("picture", "rank", "class", "probability"), rows, right=("rank", "probability"))
