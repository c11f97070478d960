"""`fastcnn optimize`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import (
    AnyModel,
    Device,
    Force,
    ImageSize,
    InputShape,
    Json,
    ModelArgs,
    NumClasses,
    Seed,
    TransformInput,
    Weights,
    WeightsSetOption,
    model_request,
    say_random,
)
from fastcnn.errors import RequestError
from fastcnn.files import check_target, replacing, sha256_of_file
from fastcnn.precision import Precision
from fastcnn.quantization.request import MAX_ACCURACY_DROP, MAX_ERROR

if TYPE_CHECKING:
    from fastcnn.optimized_module import OptimizedModule
    from fastcnn.parity import ParityReport


class Asked(StrEnum):
    """What `--precision` takes: a member of `Precision`, or the fastest that is near enough."""

    fp32 = "fp32"
    tf32 = "tf32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    auto = "auto"


def optimize(
    model: AnyModel,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write the module.  [default: MODEL.fast]", show_default=False)
    ] = None,
    weights: Weights = None,
    seed: Seed = None,
    backend: Annotated[
        str,
        typer.Option(metavar="NAME", help="torch, onnxruntime, openvino, ncnn or triton; auto measures what can run and keeps the fastest."),
    ] = "auto",
    precision: Annotated[
        Asked,
        typer.Option(
            case_sensitive=False,
            help="What weights are rounded to and the module computes in; auto takes the fastest of fp32, bf16 and, with --calibration, int8.",
        ),
    ] = Asked.fp32,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Of int8: a folder of pictures, a .npy or .npz file of preprocessed ones, or a .json file of `export --save-ranges`.",
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            metavar="X", help=f"Of int8: largest relative error on pictures kept apart.  [default: {MAX_ERROR}] Of auto: what bf16 keeps to as well."
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(metavar="X", help=f"Of int8: largest share of them that may get another best class.  [default: {MAX_ACCURACY_DROP}]"),
    ] = None,
    device: Annotated[Device, typer.Option(case_sensitive=False, help="Where the module runs.")] = Device.cpu,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="The usual batch, which auto measures with; the module takes any.")] = 1,
    slim: Annotated[bool, typer.Option("--slim", help="Leave out the weights of the reference: half the file, and no state_dict().")] = False,
    image_size: ImageSize = None,
    input_shape: InputShape = None,
    num_classes: NumClasses = None,
    transform_input: TransformInput = None,
    model_arg: ModelArgs = None,
    weights_set: WeightsSetOption = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fuse a model for this machine, save the module, and keep the file only if what is loaded from it passes the check."""
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
    if precision is Asked.tf32 and device is not Device.cuda:
        raise RequestError("tf32 is a mode of NVIDIA GPUs: take --device cuda, or --precision fp32")
    limits = {name: value for name, value in (("max_error", max_error), ("max_accuracy_drop", max_accuracy_drop)) if value is not None}
    _check_calibration(precision, calibration, limits)
    path = check_target(out or Path(request.read_model().stem + ".fast"), force, "-o")
    started = time.perf_counter()
    with output.working(f"optimizing {request.model}") as say:
        import torch

        from fastcnn.models.opening import example_input, open_model
        from fastcnn.optimization import Request, build
        from fastcnn.saving import check_device, load, save

        place = check_device(device.value)
        network = open_model(request)
        say_random(request, network.fastcnn_info)
        network, example = network.to(place), example_input(network, request, batch_size).to(place)
        dtype: Any = "auto" if precision is Asked.auto else Precision(precision.value).dtype if precision is not Asked.int8 else torch.int8
        # Checked once, after it was loaded from the file: with `auto`, only what was built right may win.
        asked = Request(dtype, backend, allow_tf32=precision is Asked.tf32, check=backend == "auto", calibration=calibration, limits=limits)
        fast, builder = build(network, example, asked, say)
        with replacing(path, suffix=".fast") as draft:
            say(f"saving {path}")
            save(fast, draft, force=True, slim=slim)
            say("checking the file")
            report = builder.verify(load(draft, device=place))
            report.require(f"{path} was not written: the module of {request.model}")
    if as_json:
        output.print_json(_to_dict(fast, report, path, slim))
    else:
        _print(fast, report, path, time.perf_counter() - started)


def _check_calibration(precision: Asked, calibration: str | None, limits: Mapping[str, float]) -> None:
    """Raises RequestError where pictures or limits were given to a precision that has no use for them, or one that needs them has none."""
    names = [*(["--calibration"] if calibration is not None else []), *(f"--{name.replace('_', '-')}" for name in limits)]
    if precision not in (Asked.int8, Asked.auto):
        if names:
            raise RequestError(
                f"{' and '.join(names)} belong{'s' * (len(names) == 1)} to --precision int8 or auto, and {precision.value} was asked for"
            )
    elif precision is Asked.int8 and calibration is None:
        raise RequestError("precision int8 needs --calibration: a folder of pictures, a .npy or .npz file of preprocessed ones, or ranges.json")
    elif precision is Asked.auto and "max_error" not in limits:
        raise RequestError("precision auto needs --max-error: how far the answers of a faster precision may be off, as in --max-error 0.02")


def _to_dict(fast: OptimizedModule, report: ParityReport, path: Path, slim: bool) -> dict[str, Any]:
    plan = fast.plan.to_dict()
    return {
        "path": path,
        "bytes": path.stat().st_size,
        "sha256": sha256_of_file(path),
        "backend": fast.backend,
        "precision": str(fast.dtype).removeprefix("torch."),
        "slim": slim,
        "input_shape": fast.source.graph.input_shape,
        "parity": report,
        "passes": plan["passes"],
        "choice": plan["choice"],
        "steps": len(plan["rows"]),
    }


def _print(fast: OptimizedModule, report: ParityReport, path: Path, seconds: float) -> None:
    """What was fused, what `auto` measured, the parity figures, the file and what to do next."""
    plan, graph = fast.plan, fast.source.graph
    measured = {f"  {one.backend}": one.why if one.milliseconds is None else f"{one.milliseconds:.2f} ms; {one.why}" for one in plan.choice}
    output.print_fields(
        {
            **output.passes(one for one in plan.passes if one.fired or one.declined),
            "backend": f"{fast.backend}, {len(plan.rows)} steps",
            **measured,
            "parity": report.summary(),
            "input": f"{output.shape(graph.input_shape)} {str(fast.dtype).removeprefix('torch.')}",
            "file": path,
            "size": f"{path.stat().st_size:,} bytes",
            "sha256": sha256_of_file(path),
            "time": f"{seconds:.1f} s, the check included",
            "next": f"fastcnn predict {shlex.quote(str(path))} PICTURE",
            "or": f"fastcnn.load({str(path)!r}) in Python",
        }
    )
