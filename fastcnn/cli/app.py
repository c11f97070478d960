"""The typer application: every command by name, and what an exception becomes.

The exit codes are those of `fastcnn.cli.exit_codes`.
Modules under `fastcnn.cli` import neither torch nor rich at their top: `fastcnn --help` must answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastcnn import __version__
from fastcnn.cli import output
from fastcnn.cli.bench.results import commands as bench_commands
from fastcnn.cli.bundle import bundle
from fastcnn.cli.env import env
from fastcnn.cli.evaluate import evaluate
from fastcnn.cli.examples import PREPROCESSING, examples
from fastcnn.cli.exit_codes import BAD_REQUEST, BROKEN_PIPE, CHECK_FAILED, DEFECT, DONE
from fastcnn.cli.export import export
from fastcnn.cli.info import info
from fastcnn.cli.list_models import list_models
from fastcnn.cli.optimize import optimize
from fastcnn.cli.predict import predict
from fastcnn.cli.stopping import say_stopped
from fastcnn.cli.train import train
from fastcnn.cli.verify import verify
from fastcnn.errors import FastcnnError, ParityError

# What click calls ClickException: some releases of typer take it from click, others carry a copy of their own.
_ClickException: type[BaseException] = typer.BadParameter.__mro__[2]


class CommandLine(TyperGroup):
    """The root command: turns exceptions into one line on stderr and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As in typer, but a usage error is one line like every other error."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except _ClickException as problem:
            sys.exit(_usage_error(problem))
        except typer.Abort:
            output.error("stopped: no answer was given")
            sys.exit(BAD_REQUEST)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else DONE)

    def invoke(self, ctx: Any) -> Any:
        """As in typer, but every exception of a command becomes a line on stderr and an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (_ClickException, typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stop:
            raise typer.Exit(say_stopped(stop)) from None
        except BrokenPipeError:
            _drop_stdout()
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as problem:
            if ctx.params.get("debug"):
                traceback.print_exc()
            raise typer.Exit(_report(problem)) from None
        return result


def _usage_error(problem: BaseException) -> int:
    message = " ".join(problem.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    message = message.replace(": Value error, ", ": ")  # some releases of typer let through what pydantic puts before a reason
    context = getattr(problem, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    output.error(message[:1].lower() + message[1:] + hint)
    return BAD_REQUEST


def _report(problem: Exception) -> int:
    """Says in one line what went wrong; returns the exit code."""
    if isinstance(problem, FastcnnError):
        output.error(str(problem))
        return CHECK_FAILED if isinstance(problem, ParityError) else BAD_REQUEST
    if isinstance(problem, OSError) and problem.strerror:
        # What fastcnn writes to a file of the user's names the file: fastcnn.files.
        where = problem.filename or f"standard output, or a temporary file in {tempfile.gettempdir()}"
        output.error(f"{problem.strerror[:1].lower()}{problem.strerror[1:]}: {where}")
        if problem.filename is None:
            _drop_stdout()
        return BAD_REQUEST
    text = " ".join(str(problem).split())
    output.error(f"fastcnn failed: {type(problem).__name__}: {text} (a defect in fastcnn; `fastcnn --debug …` shows the traceback)")
    return DEFECT


def _drop_stdout() -> None:
    """Python flushes stdout once more when it ends, and would complain about the closed pipe or the full disk."""
    with contextlib.suppress(OSError, ValueError):  # stdout may be no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastcnn {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="fastcnn",
    cls=CommandLine,
    help="Takes a CNN in PyTorch and gives back the fastest thing that provably computes the same function.",
    epilog=examples("", "Exit codes: 0 done, 1 a check failed, 2 the request could not be met, 3 a defect in fastcnn. NO_COLOR is honoured."),
    rich_markup_mode=None,  # rich's import would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="FASTCNN_DEBUG", help="Show debug logs, and the traceback of an error.")] = False,
) -> None:
    """What stands before a command; without one, the help."""
    output.set_up_streams(debug)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


app.command("list", short_help="List the models.", epilog=examples("list"))(list_models)
app.command("info", short_help="Show a model's layers, and what is fused.", epilog=examples("info"))(info)
app.command("export", short_help="Write a model to a file and check the file.", epilog=examples("export"))(export)
app.command("bundle", short_help="Make a model repository for a server.", epilog=examples("bundle"))(bundle)
app.command("optimize", short_help="Save a model as a fused module.", epilog=examples("optimize"))(optimize)
app.command("predict", short_help="Say what is on pictures.", epilog=examples("predict", PREPROCESSING))(predict)
app.command("verify", short_help="Check an exported file again.", epilog=examples("verify"))(verify)
app.add_typer(bench_commands, name="bench", short_help="Time models beside other runtimes.")
app.command("train", short_help="Train a model on a dataset.", epilog=examples("train"))(train)
app.command("evaluate", short_help="Count right answers on a dataset.", epilog=examples("evaluate"))(evaluate)
app.command("version", hidden=True, help="Print the version: the word that other tools have for --version.")(lambda: _print_version(wanted=True))
app.command("env", short_help="Show versions, devices and runtimes.", epilog=examples("env"))(env)
