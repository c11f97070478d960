"""`fastcnn export`."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import (
    AnyModel,
    DatasetName,
    Force,
    ImageSize,
    InputShape,
    Json,
    ModelArgs,
    NumClasses,
    PreprocessingFile,
    Seed,
    TransformInput,
    Weights,
    WeightsSetOption,
    model_request,
    read_preprocessing,
    say_random,
)
from fastcnn.errors import RequestError
from fastcnn.export.adapting import adapt
from fastcnn.export.attestation import attestation_path, write_attestation
from fastcnn.export.formats import FORMATS, Format
from fastcnn.export.options import PRECISIONS, ExportOptions, parse_opset, parse_picture_size, parse_precision, read_labels
from fastcnn.export.preprocess import Preprocess
from fastcnn.export.profiles import PROFILES, parse_profile
from fastcnn.files import check_target
from fastcnn.precision import Precision
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.request import MAX_ACCURACY_DROP, MAX_ERROR, SAMPLES, HalfRequest, Int8Request, Limits, QuantizeFor

if TYPE_CHECKING:
    from torch import nn

    from fastcnn.export import ExportReport


# Labelled pictures that judge an int8 file at most: these, or as many as have so many numbers together.
_LABELLED, _LABELLED_VALUES = 1000, 40_000_000


def _precisions() -> list[str]:
    return [precision.value for precision in PRECISIONS]


def export(
    model: AnyModel,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX.")] = False,
    torchscript: Annotated[bool, typer.Option("--torchscript", help="Write TorchScript (deprecated by PyTorch: prefer --pt2).")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Write a torch.export archive.")] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where to write; .onnx, .pt and .pt2 also choose the format.  [default: MODEL.onnx, .pt or .pt2]"
        ),
    ] = None,
    weights: Weights = None,
    seed: Seed = None,
    precision: Annotated[
        str, typer.Option(metavar="|".join(_precisions()), autocompletion=_precisions, help="The type of the weights and of the arithmetic.")
    ] = Precision.fp32.value,
    batch_size: Annotated[str | None, typer.Option(metavar="N|dynamic", help="The batch that the file accepts.  [default: dynamic]")] = None,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="|".join(PROFILES),
            autocompletion=lambda: list(PROFILES),
            help="What shall read the file: options left open are made to fit, what it cannot read is refused.",
        ),
    ] = None,
    opset: Annotated[
        str, typer.Option(metavar="N|min", help="The ONNX opset, 13 to 23, or the lowest that the model needs, which the most runtimes read.")
    ] = "min",
    softmax: Annotated[bool, typer.Option("--softmax", help="Give probabilities instead of logits.")] = False,
    preprocess: Annotated[
        Preprocess,
        typer.Option(
            case_sensitive=False,
            help="What the file does itself: with normalize it takes uint8 [N, H, W, C] pixels of its size, with resize of any size.",
        ),
    ] = Preprocess.none,
    picture_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of resize: take pictures of this size only, which older parsers read too.  [default: any]"),
    ] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one a line, to store in the file.")] = None,
    image_size: ImageSize = None,
    input_shape: InputShape = None,
    preprocessing: PreprocessingFile = None,
    num_classes: NumClasses = None,
    transform_input: TransformInput = None,
    model_arg: ModelArgs = None,
    weights_set: WeightsSetOption = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Largest relative error that passes; the file states it, and verify holds it to that.  [default: by precision]"
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Of int8 and fp16: a folder of pictures, a .npy or .npz file of preprocessed ones, or a .json file of --save-ranges.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, metavar="N", help=f"Pictures of --calibration to observe at most.  [default: {SAMPLES}]")
    ] = None,
    save_ranges: Annotated[Path | None, typer.Option(metavar="FILE", help="Of int8: keep what the calibration found out, as JSON.")] = None,
    quantize_for: Annotated[
        QuantizeFor | None,
        typer.Option(case_sensitive=False, help="Of int8: whose kernels the file is for.  [default: cpu]", show_default=False),
    ] = None,
    portable: Annotated[
        bool | None,
        typer.Option(
            "--portable/--no-portable",
            help="Of int8: weights of 7 bits, which no CPU saturates on.  [default: where this one would]",
            show_default=False,
        ),
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(metavar="X", help=f"Of int8: largest relative error on pictures kept apart.  [default: {MAX_ERROR}]")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(metavar="X", help=f"Of int8: largest share of them that may get another best class.  [default: {MAX_ACCURACY_DROP}]"),
    ] = None,
    dataset: Annotated[
        DatasetName | None,
        typer.Option(
            "--dataset", case_sensitive=False, help="Of int8: judge by labelled pictures, whose accuracy is then what may drop.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Where the dataset lies, as in `fastcnn evaluate`.", show_default=False)
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Of int8: print what rounding each layer does to the output.")] = False,
    attest: Annotated[bool, typer.Option("--attest", help="Also write FILE.intoto.json, an in-toto statement to sign.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model to a file, check the file in its own runtime, and keep it only if it passes."""
    target = None if out is None else _target(out)
    format_ = _format({"onnx": onnx, "torchscript": torchscript, "pt2": pt2}, target)
    request = model_request(
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
    asked = parse_precision(precision)
    int8, half = _calibrations(
        asked,
        calibration,
        samples=samples,
        save_ranges=save_ranges,
        quantize_for=quantize_for,
        portable=portable,
        max_error=max_error,
        max_accuracy_drop=max_accuracy_drop,
        sensitivity=sensitivity or None,
    )
    options = ExportOptions(
        format=format_,
        path=target or Path(request.read_model().stem + format_.suffix),
        precision=asked,
        batch_size=_batch_size(batch_size or "dynamic"),
        softmax=softmax,
        labels=read_labels(labels),
        force=force,
        opset=parse_opset(opset),
        preprocess=preprocess,
        picture_size=parse_picture_size(picture_size),
        preprocessing=None if preprocessing is None else read_preprocessing(preprocessing),
        tolerance=tolerance,
        int8=int8,
        half=half,
    )
    _check_dataset(dataset, data, int8)
    options = _adapted(options, for_, {"batch_size": batch_size, "quantize_for": quantize_for})
    check_target(options.path, options.force, "-o")
    if attest:
        check_target(attestation_path(options.path), options.force)
    with output.working(f"exporting {request.model} to {options.path}") as say:
        from fastcnn.export.exporter import export_file
        from fastcnn.models.opening import example_input, open_model

        network = open_model(request)
        say_random(request, network.fastcnn_info)
        if dataset is not None and data is not None and options.int8 is not None:
            options = replace(options, int8=_with_labels(options.int8, dataset, data, network, options.preprocessing))
        report = export_file(network, example_input(network, request, options.batch_size or 1), options, say)
        if attest:
            output.note(f"the attestation is in {write_attestation(report)}; it is not signed")
    if as_json:
        output.print_json(report)
        return
    if sensitivity:
        _print_sensitivity(report.metadata["quantization"]["sensitivity"])
    print_report(report)


def _calibrations(precision: Precision, calibration: str | None, **given: Any) -> tuple[Int8Request | None, HalfRequest | None]:
    """What --calibration and the options beside it ask for in `precision`; None each where nothing was given."""
    options = {name: value for name, value in given.items() if value is not None}
    if calibration is None:
        if options:
            raise RequestError(f"{_spelled(options)} without --calibration: int8 needs pictures to observe, or the ranges of an earlier export")
        return None, None
    if precision is Precision.fp16:
        samples = options.pop("samples", SAMPLES)
        if options:
            raise RequestError(f"{_spelled(options)} belongs to int8: with --calibration, fp16 takes --samples alone")
        return None, HalfRequest(calibration=calibration, samples=samples)
    limits = {name: options.pop(name) for name in ("max_error", "max_accuracy_drop") if name in options}
    return Int8Request(calibration=calibration, limits=Limits(**limits), **options), None


def _adapted(options: ExportOptions, for_: str | None, left_open: Mapping[str, Any]) -> ExportOptions:
    """The options as --for wants them; says what became of those that were left open, None in `left_open`."""
    profile = parse_profile(for_)
    if profile is None:
        return options
    options, changes = adapt(options, profile, [name for name, given in left_open.items() if given is not None])
    for change in changes:
        output.note(f"for {profile.title}: {change}")
    if not changes:
        output.note(f"for {profile.title}: nothing to change")
    return options


def _check_dataset(dataset: DatasetName | None, data: Path | None, int8: Int8Request | None) -> None:
    """Raises RequestError where labelled pictures are asked for in part, or have nothing to judge."""
    if (dataset is None) != (data is None):
        raise RequestError("--dataset and --data go together: the name of the dataset, and where it lies")
    if dataset is not None and int8 is None:
        raise RequestError("--dataset judges the accuracy of an int8 file: give --precision int8 and --calibration, or use `fastcnn evaluate`")


def _with_labels(int8: Int8Request, dataset: DatasetName, data: Path, network: nn.Module, preprocessing: Preprocessing | None) -> Int8Request:
    """The request with labelled pictures of the test part, evenly spaced, their labels as the network numbers its classes."""
    import torch

    from fastcnn.data.datasets import open_dataset
    from fastcnn.evaluation.evaluator import class_order, spaced
    from fastcnn.models.preprocessing_of import preprocessing_of

    known = preprocessing or preprocessing_of(network)
    if known is None:
        raise RequestError("--dataset: the model does not say how a picture becomes its input: give --preprocessing FILE")
    opened = open_dataset(dataset.value, data, "test", known)
    most = max(1, min(_LABELLED, _LABELLED_VALUES // math.prod(known.output_shape)))
    batches = list(opened.batches(spaced(len(opened), most), 100))
    labels = torch.cat([labels for _, labels in batches])
    order = class_order(getattr(network.fastcnn_info, "categories", None), opened.classes)
    if order is not None:
        labels = torch.tensor(order)[labels]
    pictures = torch.cat([known.normalize(pixels) for pixels, _ in batches])
    return replace(int8, labelled=(pictures, labels), labels_from=f"{len(labels)} of the {len(opened)} pictures of {opened.name}")


def _spelled(options: Mapping[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in options)


def _target(out: str) -> Path:
    """The file that -o names."""
    if out == "-":
        raise RequestError("a file is checked where it lies before it is kept, so none goes to stdout: give -o the name of a file")
    if out.endswith(("/", os.sep)):  # a Path would drop it, and a file of that name would be written
        raise RequestError(f"{out} is a folder: give -o the name of a file in it")
    return Path(out)


def _format(flags: dict[str, bool], out: Path | None) -> Format:
    """The one format asked for, by its flag or by the suffix of the output file."""
    chosen = [FORMATS[name] for name, given in flags.items() if given]
    by_suffix = next((row for row in FORMATS.values() if out and row.suffix == out.suffix.lower()), None)
    if len(chosen) > 1:
        raise RequestError(f"one format at a time: {' and '.join('--' + row.name for row in chosen)} were given")
    if not chosen and by_suffix is None:
        where = f"the suffix of {out} names none" if out else "none was given"
        raise RequestError(f"which format? {where}: give --onnx, --torchscript or --pt2, or -o FILE ending in .onnx, .pt or .pt2")
    if out and chosen and by_suffix is not None and by_suffix is not chosen[0]:
        raise RequestError(f"--{chosen[0].name} and the suffix of {out} disagree: {out.suffix} is for {by_suffix.name}")
    found = chosen[0] if chosen else by_suffix
    assert found is not None
    return found


def _batch_size(text: str) -> int | None:
    """The size, or None for any."""
    if text == "dynamic":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise RequestError(f"--batch-size is a whole number from 1, or the word dynamic; it is {text!r}")
    return int(text)


def print_report(report: ExportReport) -> None:
    """What was fused, the parity figures, the file and what it takes and gives, and what to do next."""
    entry = report.metadata["input"]
    output.print_fields(
        {
            **output.passes(one for one in report.passes if one.fired or one.declined),
            "parity": report.parity.summary(),
            "not for": "; ".join(f"{name} ({reason})" for name, reason in report.left_out.items()) or None,
            **_quantization(report.metadata.get("quantization")),
            **_mixed_precision(report.metadata.get("mixed_precision")),
            "input": _tensor(entry),
            "output": ", ".join(_tensor(one) for one in report.metadata["outputs"]),
            "opset": report.metadata.get("opset"),
            "preprocessing": _preprocessing(entry),
            "file": report.path,
            "size": f"{report.bytes:,} bytes",
            "sha256": report.sha256,
            "time": f"{report.seconds:.1f} s, the check included",
            "next": f"fastcnn verify {shlex.quote(str(report.path))}",
            "or": f"fastcnn predict {shlex.quote(str(report.path))} PICTURE" if entry["preprocessing"] else None,
        }
    )


def _quantization(about: Mapping[str, Any] | None) -> dict[str, str]:
    """How an int8 file was calibrated, what it computes in 8 bits, and how far its answers moved in each runtime."""
    if about is None:
        return {}
    source, left = about["calibration"], about["float_layers"]
    skipped = f", {source['skipped']} file{'s' * (source['skipped'] > 1)} skipped" if source["skipped"] else ""
    others = f"judged by {about['labels']}" if "labels" in about else f"{about['held_out']} others to judge by"
    return {
        "calibration": f"{source['samples']} pictures of {source['source']}{skipped}, {others}",
        "int8": f"{about['layers'] - len(left)} of {about['layers']} layers, weights of {about['weight_bits']} bits, for {about['for']}, "
        f"judged on {about['instruction_set']}" + (f"; in float: {', '.join(left)}" if left else ""),
        **{
            f"in {runtime}": f"relative error {figures['relative_error']:g}, top-1 agreement {figures['top1_agreement']:.0%}, "
            + (f"accuracy {figures['accuracy']:.2%} ({figures['reference_accuracy']:.2%} before), " if "accuracy" in figures else "")
            + f"probability of the best class moved by {figures['mean_change']:g} on average, {figures['largest_change']:g} at most"
            for runtime, figures in about["gate"].items()
        },
    }


def _mixed_precision(about: Mapping[str, Any] | None) -> dict[str, str | None]:
    """What of a float16 file stays in float32, and by which pictures that was found."""
    if about is None:
        return {}
    observed, layers = about["observed"], [f"{one['layer']} ({one['why']})" for one in about["float32_layers"]]
    seen = f"by {observed['pictures']} pictures of {observed['source']}"
    return {"float16": f"all of it, {seen}" if not layers else f"all but {len(layers)} layers, {seen}", "in float32": "; ".join(layers) or None}


def _print_sensitivity(rows: Sequence[Mapping[str, Any]]) -> None:
    """The layer that hurts most first; a bar for each."""
    largest = max((row["weights"] ** 2 + row["activations"] ** 2) ** 0.5 for row in rows) or 1.0
    lines = []
    for row in rows:
        both = (row["weights"] ** 2 + row["activations"] ** 2) ** 0.5
        lines.append(
            [row["layer"], f"{row['weights']:.2%}", f"{row['activations']:.2%}", f"{row['operations'] / 1e6:.1f} M", "█" * round(20 * both / largest)]
        )
    output.print_table(["layer", "weights", "activations", "multiply-adds", "error of the output, alone"], lines)


def _tensor(entry: Mapping[str, Any]) -> str:
    """Name, shape, dtype and, of the input, layout."""
    layout = f", {entry['layout']}" if "layout" in entry else ""
    return f"{entry['name']} {'×'.join(map(str, entry['shape']))} {entry['dtype']}{layout}"


def _preprocessing(entry: Mapping[str, Any]) -> str:
    """From a picture to the input, and how much of it the file does."""
    if entry["preprocessing"] is None:
        return "not known: the file takes what the model takes"
    where = {"none": "before the file", "normalize": "before the file, which scales and normalises", "resize": "in the file"}
    return f"{where[entry['preprocessing_in_file']]}: {Preprocessing.from_dict(entry['preprocessing']).summary()}"
