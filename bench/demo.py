"""`python -m fastcnn.bench.demo`: a model becomes an ONNX file that is proven equal to it, and is timed beside eager PyTorch.

Another, trained on MNIST, becomes one that reads the handwritten digits that this package holds.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from fastcnn.bench.measuring.measure import Settings, measure_group
from fastcnn.bench.peers.base import Peer, Prepared
from fastcnn.bench.peers.fastcnn import Fastcnn
from fastcnn.bench.peers.runtimes import onnxruntime_runner
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.torch import Eager
from fastcnn.bench.records.environment import busy, load_average
from fastcnn.bench.views.tables import print_group
from fastcnn.cores import usable_cores
from fastcnn.data.samples import digit_files
from fastcnn.errors import FastcnnError, ParityError
from fastcnn.export import export_onnx, verify_file
from fastcnn.models import create_model, model_spec
from fastcnn.pictures import open_picture
from fastcnn.prediction.loading import load_predictor
from fastcnn.prediction.run import Answer, predict


class ExportedFile(Peer):
    """The file that the demo has just written, in onnxruntime."""

    name = "onnx_file"
    ours = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """A session of onnxruntime on the file."""
        run, proof = onnxruntime_runner(self.path, threads)
        return Prepared(run, proof)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit code: 0 done, 1 a check failed, 2 the request was wrong."""
    parser = argparse.ArgumentParser(prog="python -m fastcnn.bench.demo", description=__doc__)
    parser.add_argument("--model", default="inception_v3", help="a name that `fastcnn list` prints (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=None, help="the file to write; an existing one is overwritten (default: MODEL.onnx)")
    parser.add_argument("--rounds", type=int, default=8, help="visits to each timed row (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        spec = model_spec(options.model)
        run_demo(spec.name, options.output or Path(f"{spec.name}.onnx"), options.rounds)
    except FastcnnError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1 if isinstance(problem, ParityError) else 2
    return 0


def run_demo(name: str, path: Path, rounds: int) -> None:
    """Exports, verifies and times one model, and prints each step as it ends.

    Raises what these steps raise, and ParityError if a row that should have been timed failed.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # a pipe has no width of its own

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    spec = model_spec(name)
    warning = busy(load_average(), usable_cores())  # before the export, which is busy itself
    model = create_model(name)
    example = torch.rand(1, *spec.input_size, generator=torch.Generator().manual_seed(0))
    say(f"1  {name}, seeded random weights → {path}", "bold")
    with contextlib.redirect_stdout(sys.stderr):  # exporters like to talk
        report = export_onnx(model, path, example, force=True)
    for fused in report.passes:
        if fused.fired:
            say(f"   {fused}")
    say(f"   {report.bytes / 1e6:.1f} MB, sha256 {report.sha256}, {report.seconds:.1f} s with its check")
    say("2  the same answers", "bold")
    say(f"   against the reference  {report.parity.summary()}")
    say(f"   from the file alone    {verify_file(path).summary()}")

    say("3  its speed on this machine, rows timed in turns", "bold")
    if warning:
        say(f"   {warning}", "yellow")
    settings = Settings(threads=torch.get_num_threads(), rounds=rounds, baseline=Eager.name)
    with contextlib.redirect_stdout(sys.stderr), Subject(model) as subject:
        group = measure_group(name, subject, [Eager(), ExportedFile(path), Fastcnn()], tuple(example.shape), settings)
    print_group(group, console)
    if group.interrupted:
        raise KeyboardInterrupt
    for row in group.rows:
        if row.name == Fastcnn.name and "backend" in row.proof:
            say(f"fastcnn: fastcnn.optimize(model, x), which chose the backend {row.proof['backend']} here; onnx_file: {path} in onnxruntime")
    failed = [f"{row.name}: {row.reason}" for row in group.rows if row.status == "failed"]
    if failed:
        raise ParityError("; ".join(failed))
    read_digits(path.with_name("digits.onnx"), console)


def read_digits(path: Path, console: Console) -> None:
    """Exports `inception_mnist` with the weights that ship, and reads ten digits of MNIST's test set with the file alone.

    Raises what these steps raise, and ParityError if a digit is misread.
    """
    name, weights = "inception_mnist", "mnist"
    console.print(f"4  {name}, weights {weights} → {path}, which reads handwriting", style="bold", markup=False, soft_wrap=True)
    model, digits = create_model(name, weights), digit_files()
    example = torch.stack([model_spec(name).preprocessing(open_picture(str(file))) for file in digits])
    with contextlib.redirect_stdout(sys.stderr):
        report = export_onnx(model, path, example, force=True)
    console.print(f"   {report.parity.summary()}", markup=False, soft_wrap=True)
    misread = []
    for (file, digit), answer in zip(digits.items(), predict(load_predictor(path), list(map(str, digits))), strict=True):
        read = answer.top[0].label if isinstance(answer, Answer) else "nothing"
        if read != str(digit):
            misread.append(file.name)
        sure = f"{answer.top[0].probability:.1%}" if isinstance(answer, Answer) else answer.reason
        console.print(f"   {file.name}  shows {digit}, read as {read} ({sure})", markup=False, soft_wrap=True)
    if misread:
        raise ParityError(f"{path} misreads {', '.join(misread)}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
