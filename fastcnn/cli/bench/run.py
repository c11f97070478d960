"""`fastcnn bench`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastcnn.cli import output
from fastcnn.cli.exit_codes import CHECK_FAILED
from fastcnn.cli.options import Device, Force, ImageSize, InputShape, ModelArgs, NumClasses, Weights, complete_model, model_request, own_spelling
from fastcnn.cli.progress import progress_bar
from fastcnn.cli.stopping import say_stopped
from fastcnn.errors import RequestError
from fastcnn.files import check_target
from fastcnn.precision import Precision

if TYPE_CHECKING:
    from fastcnn.bench.measuring.measure import ProgressCallback
    from fastcnn.bench.records.result import BenchmarkReport

_PEERS_HELP = "Rows by name or wildcard, as in eager,onnxruntime,fastcnn*; they are listed below.  [default: all]"


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Names that `fastcnn list` prints, torchvision:NAME, timm:NAME, package.module:callable, FILE.py:callable, .pt2 files; of an .onnx "
            "file the runtimes that run it.  [default: inception_v3]",
            autocompletion=complete_model,
        ),
    ] = None,
    device: Annotated[Device, typer.Option(case_sensitive=False, help="Where to run.")] = Device.cpu,
    batch_size: Annotated[str, typer.Option(metavar="N,N…", help="Batch sizes, each measured apart.")] = "1,8",
    peers: Annotated[str | None, typer.Option(metavar="NAME,NAME…", help=_PEERS_HELP)] = None,
    baseline: Annotated[
        str, typer.Option(metavar="NAME", help="The row that speeds refer to; best-peer is the fastest that is not fastcnn's.")
    ] = "best-peer",
    precision: Annotated[
        Precision,
        typer.Option(
            case_sensitive=False,
            help="What every row computes in; its error is held against float64 by the rule of that precision. int8: rows in 8 bits beside float32.",
        ),
    ] = Precision.fp32,
    calibration: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Of int8: a folder of pictures, or a .npy file of preprocessed ones; they are also the input.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Visits to each row, of 2 to 5 timed runs each, in an order drawn anew every round.")] = 10,
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads of every runtime alike.  [default: PyTorch's own count]")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the input and of the order of the rows.")] = 0,
    cold_start: Annotated[
        bool, typer.Option("--cold-start", help="Also start each timed row in a fresh process, for its first answer and its memory.")
    ] = False,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Also measure this machine's bandwidth and matrix rate, and how near each step of the plan comes.")
    ] = False,
    ladder: Annotated[bool, typer.Option("--ladder", help="Also show what each technique adds to those before it.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything, all samples included; - is stdout.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots; it needs no network.")] = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    model_arg: ModelArgs = None,
    image_size: ImageSize = None,
    input_shape: InputShape = None,
    force: Force = False,
) -> None:
    """Time a model here in every runtime that can run it, each first checked against the reference. Ctrl-C keeps what is finished."""
    batch_sizes = batch_sizes_of(batch_size)
    chosen = None if peers is None else names_of(peers)
    if chosen == []:
        raise RequestError("--peers names no row; leave it out for all of them")
    to_stdout = json_file == Path("-")
    if json_file is not None and not to_stdout:
        check_target(json_file, force, "--json")
    if html_file is not None:
        check_target(html_file, force, "--html")
        if json_file is not None and json_file.absolute() == html_file.absolute():
            raise RequestError(f"--json and --html both name {html_file}: give them two files")
    if (calibration is None) == (precision is Precision.int8):
        raise RequestError("--precision int8 and --calibration go together: rows in 8 bits are rounded by pictures, and others are not")
    if calibration is not None and cold_start:
        raise RequestError("--cold-start starts no rows in int8: leave it out")
    options = {"weights": weights, "num_classes": num_classes, "model_args": model_arg, "image_size": image_size, "input_shape": input_shape}
    # What the names mean is told first, without importing torch.
    names = list(dict.fromkeys(model_request(own_spelling(name), **options) for name in models or ["inception_v3"]))

    import torch

    from fastcnn.bench.measuring.measure import Settings
    from fastcnn.bench.peers.table import select_peers
    from fastcnn.bench.run import Extras, benchmark
    from fastcnn.bench.views.tables import print_report, to_json, write_json

    rows = select_peers(chosen, device.value, precision)
    count = torch.get_num_threads() if threads is None else threads
    settings = Settings(threads=count, rounds=rounds, seed=seed, baseline=baseline, calibration=calibration)
    with contextlib.redirect_stdout(sys.stderr):  # exporters like to talk
        extras = Extras(cold_start, roofline, ladder)
        report = benchmark(names, batch_sizes, rows, settings, device=device.value, precision=precision, extras=extras, progress_of=_progress)
    if to_stdout:
        print(to_json(report))
    else:
        print_report(report, output.console())
    if json_file is not None and not to_stdout:
        write_json(report, json_file)
        output.note(f"everything measured is in {json_file}")
    if html_file is not None:
        from fastcnn.bench.views.page import write_page

        write_page(report, html_file)
        output.note(f"the page is {html_file}")
    _leave(report)


def _leave(report: BenchmarkReport) -> None:
    """Ends with 1 if a row of ours failed: a benchmark that shows fastcnn broken is a failed check."""
    failed = sorted({row.name for row in report.rows() if row.ours and row.status == "failed"})
    if failed:
        output.error(f"{', '.join(failed)} failed: the reason is in the report")
        raise typer.Exit(CHECK_FAILED)
    if report.interrupted:
        raise typer.Exit(say_stopped())


def names_of(text: str) -> list[str]:
    """The names in a list with commas; empty where there is none."""
    return [name.strip() for name in text.split(",") if name.strip()]


def batch_sizes_of(text: str) -> list[int]:
    """The numbers of --batch-size, each once. Raises RequestError for anything but whole numbers from 1."""
    parts = names_of(text)
    if not parts or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise RequestError(f"--batch-size is one or more whole numbers from 1, separated by commas; it is {text!r}")
    return list(dict.fromkeys(int(part) for part in parts))


@contextlib.contextmanager
def _progress(title: str) -> Iterator[ProgressCallback]:
    """A bar on stderr for one model and batch size; one plain line where nobody watches."""
    if not output.console(stderr=True).is_terminal:
        output.note(f"measuring {title}")
    with progress_bar(title) as advance:
        yield lambda phase, done, total, what: advance(done, total, f"{title}: {phase} ({what})")
