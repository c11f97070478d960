"""`fastcnn export`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastcnn.cli import output
from fastcnn.cli.options import Json, Model, ModelArgs, NumClasses, TransformInput, WeightsSetOption, model_options
from fastcnn.errors import RequestError

if TYPE_CHECKING:
    from fastcnn.export import ExportReport

SUFFIX_OF = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}


class Precision(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"


class Preprocess(StrEnum):
    none = "none"
    normalize = "normalize"
    resize = "resize"


def export(
    model: Model,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX.")] = False,
    torchscript: Annotated[bool, typer.Option("--torchscript", help="Write TorchScript (deprecated by PyTorch: prefer --pt2).")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Write a torch.export archive.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where to write; .onnx, .pt and .pt2 also choose the format.  [default: MODEL.onnx, .pt or .pt2]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W", help="A .safetensors or .pth file, a torchvision weights name, or mnist.  [default: seeded random weights]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="The seed of random weights.  [default: 0]")] = None,
    precision: Annotated[Precision, typer.Option(help="The type of the weights and of the arithmetic.")] = Precision.fp32,
    batch_size: Annotated[str, typer.Option(metavar="N|dynamic", help="The batch that the file accepts.")] = "dynamic",
    opset: Annotated[int | None, typer.Option(metavar="N", help="The ONNX opset.  [default: what the exporter recommends]")] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="Give probabilities instead of logits.")] = False,
    preprocess: Annotated[
        Preprocess,
        typer.Option(help="What the file does itself: with normalize it takes uint8 [N, H, W, C] pixels of its size, with resize of any size."),
    ] = Preprocess.none,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one a line, to store in the file.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Height and width of the input.  [default: the model's own]")] = None,
    num_classes: NumClasses = None,
    transform_input: TransformInput = None,
    model_arg: ModelArgs = None,
    weights_set: WeightsSetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model to a file, check the file in its own runtime, and keep it only if it passes."""
    format_ = _format({"onnx": onnx, "torchscript": torchscript, "pt2": pt2}, out)
    path = out or Path(model + SUFFIX_OF[format_])
    if opset is not None and format_ != "onnx":
        raise RequestError(f"--opset belongs to ONNX, and this is a {format_} export: leave it out")
    if weights is not None and seed is not None:
        raise RequestError("--seed makes random weights and --weights loads others: give one of them")
    batch = _batch_size(batch_size)

    from fastcnn.export.request import check_request
    from fastcnn.models import create_model, model_spec

    channels, height, width = model_spec(model).input_size
    wanted: dict[str, Any] = {"precision": precision.value, "batch_size": batch, "softmax": softmax, "labels": labels, "force": force}
    wanted["preprocess"] = preprocess.value
    if opset is not None:
        wanted["opset"] = opset
    check_request(path, batch_sizes=(1,), **wanted)
    options = model_options(model, num_classes=num_classes, transform_input=transform_input, model_args=model_arg, weights_set=weights_set)
    with output.working(f"exporting {model} to {path}"):
        import torch

        network = create_model(model, weights, seed=seed or 0, **options)
        if weights is None:
            output.note(f"{model} has seeded random weights (seed {seed or 0}); --weights gives it trained ones")
        shape = (1 if batch == "dynamic" else batch, channels, image_size or height, image_size or width)
        example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        report = _exporter(format_)(network, path, example, **wanted)
    if as_json:
        output.print_json(report)
    else:
        print_report(report)


def _format(flags: dict[str, bool], out: Path | None) -> str:
    """The one format asked for, by its flag or by the suffix of the output file."""
    chosen = [name for name, given in flags.items() if given]
    by_suffix = {suffix: name for name, suffix in SUFFIX_OF.items()}.get(out.suffix.lower()) if out else None
    if len(chosen) > 1:
        raise RequestError(f"one format at a time: {' and '.join('--' + name for name in chosen)} were given")
    if not chosen and by_suffix is None:
        where = f"the suffix of {out} names none" if out else "none was given"
        raise RequestError(f"which format? {where}: give --onnx, --torchscript or --pt2, or -o FILE ending in .onnx, .pt or .pt2")
    if chosen and by_suffix is not None and by_suffix != chosen[0]:
        raise RequestError(f"--{chosen[0]} and the suffix of {out} disagree: {out.suffix if out else ''} is for {by_suffix}")
    return chosen[0] if chosen else str(by_suffix)


def _batch_size(text: str) -> int | Literal["dynamic"]:
    if text == "dynamic":
        return "dynamic"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise RequestError(f"--batch-size is a whole number from 1, or the word dynamic; it is {text!r}")
    return int(text)


def _exporter(format_: str) -> Callable[..., ExportReport]:
    from fastcnn.export import export_onnx, export_pt2, export_torchscript

    return {"onnx": export_onnx, "torchscript": export_torchscript, "pt2": export_pt2}[format_]


def print_report(report: ExportReport) -> None:
    """What was fused, the parity figures, and the file."""
    output.print_fields(
        {
            **output.passes(report.passes),
            "parity": report.parity.summary(),
            "file": report.path,
            "size": f"{report.bytes:,} bytes",
            "sha256": report.sha256,
            "time": f"{report.seconds:.1f} s, the check included",
        }
    )
