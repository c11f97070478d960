"""`fastcnn bundle`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import (
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
    complete_model,
    model_request,
    own_spelling,
    read_preprocessing,
    say_random,
)
from fastcnn.errors import RequestError
from fastcnn.export.formats import FORMATS
from fastcnn.export.options import ExportOptions, parse_precision, read_labels
from fastcnn.export.preprocess import Preprocess
from fastcnn.export.serving_request import MAX_BATCH_SIZE, BundleRequest
from fastcnn.export.serving_targets import BackendName, DeviceName, ServerName
from fastcnn.files import check_folder_target
from fastcnn.precision import Precision

if TYPE_CHECKING:
    from fastcnn.export import BundleReport, ExportReport
    from fastcnn.models.request import ModelRequest

# Int8 needs a calibration: `fastcnn export` has the options for that, and its file is bundled.
_PRECISIONS = (Precision.fp32, Precision.fp16)


def bundle(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A model, as in `fastcnn export`, or an .onnx or .pt file that it wrote.",
            autocompletion=complete_model,
            callback=own_spelling,
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to make.", show_default=False)],
    server: Annotated[ServerName, typer.Option(case_sensitive=False, help="What will serve it.")] = ServerName.triton,
    backend: Annotated[
        BackendName | None,
        typer.Option(
            case_sensitive=False,
            help="What runs the network there.  [default: onnxruntime; of ovms openvino]",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        DeviceName | None, typer.Option(case_sensitive=False, help="Where it runs.  [default: cpu; of tensorrt cuda]", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model.  [default: its own name]")] = None,
    model_version: Annotated[int, typer.Option(min=1, metavar="N", help="The version folder.")] = 1,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"Pictures that the server puts together at most.  [default: {MAX_BATCH_SIZE}]")
    ] = None,
    queue_delay: Annotated[
        int | None, typer.Option(min=0, metavar="US", help="Microseconds that a request may wait for others to share its batch.  [default: 0]")
    ] = None,
    instances: Annotated[int | None, typer.Option(min=1, metavar="N", help="Calls that are computed at once.  [default: 1]")] = None,
    storage_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="Of kserve: where the cluster finds the folder, as in s3://bucket/repo.")
    ] = None,
    weights: Weights = None,
    seed: Seed = None,
    precision: Annotated[str, typer.Option(metavar="fp32|fp16", help="Of a model: the type of its weights and arithmetic.")] = Precision.fp32.value,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of a model: the one batch that it takes.  [default: any]")] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="Of a model: give probabilities instead of logits.")] = False,
    preprocess: Annotated[
        Preprocess, typer.Option(case_sensitive=False, help="Of a model: what the served file does itself, as in `fastcnn export`.")
    ] = Preprocess.none,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Of a model: class names, one a line.")] = None,
    image_size: ImageSize = None,
    input_shape: InputShape = None,
    preprocessing: PreprocessingFile = None,
    num_classes: NumClasses = None,
    transform_input: TransformInput = None,
    model_arg: ModelArgs = None,
    weights_set: WeightsSetOption = None,
    as_json: Json = False,
) -> None:
    """Make a folder that an inference server loads: the checked file, the server's configuration, labels, warm-up data and checksums."""
    asked = BundleRequest(
        server=server.value,
        backend=None if backend is None else backend.value,
        name=name,
        version=model_version,
        max_batch_size=max_batch_size,
        queue_delay=queue_delay,
        device=None if device is None else device.value,
        instances=instances,
        storage_uri=storage_uri,
    )
    check_folder_target(out, "-o")
    of_model: dict[str, Any] = {
        "weights": weights,
        "seed": seed,
        "num_classes": num_classes,
        "transform_input": transform_input,
        "model_args": model_arg,
        "weights_set": weights_set,
        "image_size": image_size,
        "input_shape": input_shape,
    }
    if Path(model).suffix.lower() in (FORMATS["onnx"].suffix, FORMATS["torchscript"].suffix):
        exported = (softmax, labels, preprocessing, batch_size, precision != Precision.fp32, preprocess is not Preprocess.none)
        if any(exported) or any(value is not None for value in of_model.values()):
            raise RequestError(f"{model} is a finished file: options of a model belong to the `fastcnn export` that writes it")
        report = _of_file(Path(model), out, asked)
    else:
        known = parse_precision(precision)
        if known not in _PRECISIONS:
            raise RequestError(f"a bundle is made in fp32 or fp16; {known} needs a calibration: bundle the file that `fastcnn export` makes with it")
        options = ExportOptions(
            format=asked.format,
            path=out,  # of the folder: the file's own comes when it is made
            precision=known,
            batch_size=batch_size,
            softmax=softmax,
            labels=read_labels(labels),
            preprocess=preprocess,
            preprocessing=None if preprocessing is None else read_preprocessing(preprocessing),
        )
        report = _of_model(model_request(model, **of_model), out, asked, options)
    if as_json:
        output.print_json(report)
    else:
        print_report(report)


def _of_file(path: Path, out: Path, asked: BundleRequest) -> BundleReport:
    with output.working(f"checking {path}"):
        from fastcnn.export.bundle import bundle as make

        return make(path, out, asked)


def _of_model(request: ModelRequest, out: Path, asked: BundleRequest, options: ExportOptions) -> BundleReport:
    request.read_model()
    with output.working(f"exporting {request.model} to {out}") as say:
        from fastcnn.export.bundle import write_repository
        from fastcnn.export.exporter import export_file
        from fastcnn.models.opening import example_input, open_model

        network = open_model(request)
        say_random(request, network.fastcnn_info)
        example = example_input(network, request, options.batch_size or 1)

        def place(target: Path) -> ExportReport:
            return export_file(network, example, replace(options, path=target), say)

        return write_repository(out, asked, place)


def print_report(report: BundleReport) -> None:
    """The folder, how the model is called there, and what to know before it is served."""
    for note in report.notes:
        output.note(note)
    output.print_fields(
        {
            "folder": report.path,
            "server": f"{report.server}, {report.backend}",
            "model": report.name,
            "batches": "put together from requests" if report.batched else "as each request brings them",
            "parity": report.parity.summary(),
            "files": f"{len(report.files)}, checked by `sha256sum -c SHA256SUMS`",
            "sha256": report.sha256,
            "next": _start(report),
        }
    )


def _start(report: BundleReport) -> str:
    """The command that serves the folder."""
    folder = shlex.quote(str(report.path.absolute()))
    return {
        ServerName.triton: f"tritonserver --model-repository {folder}",
        ServerName.ovms: f"ovms --config_path {folder}/config.json --rest_port 8000",
        ServerName.kserve: f"kubectl apply -f {folder}/inferenceservice.yaml, once the folder is where storageUri says",
    }[ServerName(report.server)]
