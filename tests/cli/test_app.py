"""What every command has in common: a quick start, one-line errors, exit codes, streams."""

from __future__ import annotations

import errno
import inspect
import re
import signal
import subprocess
import sys
from enum import Enum
from typing import get_args, get_type_hints

import pytest
import typer.main

import fastcnn.cli
from fastcnn.cli.app import app
from fastcnn.cli.options import own_spelling
from fastcnn.errors import BackendError, ParityError, RequestError, Terminated, UnknownNameError
from fastcnn.models import registry

COMMANDS = ("list", "info", "export", "bundle", "verify", "bench", "env")


@pytest.mark.parametrize("args", [["--help"], ["list"], ["list", "--json"], ["export", "--help"], ["--version"]], ids=" ".join)
def test_starts_without_torch(args, environment):
    """Importing torch takes seconds: help and the list of models must answer at once."""
    code = f"""
import sys
sys.argv = ["fastcnn", *{args!r}]
from fastcnn.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "torchvision", "numpy", "onnx", "onnxruntime"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_names_every_command(cli):
    result = cli("--help")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line.startswith("  ") and line[2] != " "]
    assert set(COMMANDS) <= set(listed)


def test_no_command_prints_the_help(cli):
    bare, asked = cli(), cli("--help")
    assert (bare.exit_code, bare.stdout) == (0, asked.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli, command):
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize("flag", ["--version", "-V", "version"])
def test_version(cli, flag):
    assert cli(flag).stdout == f"fastcnn {fastcnn.__version__}\n"


CHOICES = [
    (["export", "simple_cnn", "--onnx", "--preprocess", "{}"], "crop", "Normalize"),
    (["train", "simple_cnn", "--dataset", "{}", "--data", "gone"], "coco", "Fashion-MNIST"),
    (["train", "simple_cnn", "--dataset", "mnist", "--data", "gone", "--schedule", "{}"], "step", "Cosine"),
    (["train", "simple_cnn", "--dataset", "mnist", "--data", "gone", "--device", "{}"], "tpu", "CPU"),
    (["evaluate", "simple_cnn", "--dataset", "{}", "--data", "gone"], "coco", "MNIST"),
    (["evaluate", "simple_cnn", "--dataset", "mnist", "--data", "gone", "--split", "{}"], "dev", "Test"),
    (["info", "simple_cnn", "--weights-set", "{}"], "swa", "EMA"),
    (["export", "simple_cnn", "--onnx", "--weights-set", "{}"], "swa", "Plain"),
    (["predict", "simple_cnn", "gone.png", "--weights-set", "{}"], "swa", "EMA"),
    (["predict", "simple_cnn", "gone.png", "--device", "{}"], "tpu", "CPU"),
    (["predict", "simple_cnn", "gone.png", "--progress", "{}"], "dots", "JSON"),
    (["predict", "simple_cnn", "gone.png", "--part-format", "{}"], "csv", "JSONL"),
    (["evaluate", "simple_cnn", "--dataset", "mnist", "--data", "gone", "--device", "{}"], "tpu", "CPU"),
    (["evaluate", "simple_cnn", "--dataset", "mnist", "--data", "gone", "--weights-set", "{}"], "swa", "EMA"),
    (["export", "simple_cnn", "--onnx", "--precision", "int8", "--quantize-for", "{}"], "phone", "TensorRT"),
    (["export", "simple_cnn", "--onnx", "--dataset", "{}", "--data", "gone"], "coco", "CIFAR10"),
    (["bundle", "simple_cnn", "-o", "gone/repo", "--server", "{}"], "seldon", "Triton"),
    (["bundle", "simple_cnn", "-o", "gone/repo", "--backend", "{}"], "caffe", "OpenVINO"),
    (["bundle", "simple_cnn", "-o", "gone/repo", "--device", "{}"], "tpu", "CPU"),
    (["bundle", "simple_cnn", "-o", "gone/repo", "--preprocess", "{}"], "crop", "Normalize"),
    (["bundle", "simple_cnn", "-o", "gone/repo", "--weights-set", "{}"], "swa", "EMA"),
    (["optimize", "simple_cnn", "-o", "gone/x.fast", "--weights-set", "{}"], "swa", "EMA"),
    (["optimize", "simple_cnn", "-o", "gone/x.fast", "--device", "{}"], "tpu", "CPU"),
    (["optimize", "simple_cnn", "-o", "gone/x.fast", "--precision", "{}"], "int9", "BF16"),
    (["bench", "simple_cnn", "--device", "{}", "--peers", "gone"], "tpu", "CPU"),
    (["bench", "simple_cnn", "--precision", "{}", "--peers", "gone"], "int9", "FP16"),
    (["bench", "layers", "simple_cnn", "--precision", "{}", "--implementations", ","], "int9", "BF16"),
]


@pytest.mark.parametrize(("args", "wrong", "right"), CHOICES, ids=lambda value: value if isinstance(value, str) else None)
def test_choices_are_named_without_what_pydantic_says_and_taken_in_any_case(cli, monkeypatch, args, wrong, right):
    refused = cli(*[word.format(wrong) for word in args])
    assert refused.exit_code == 2
    assert re.search(rf"^error: invalid value for '--[a-z-]+': '{wrong}' is not one of ", refused.stderr), refused.stderr
    monkeypatch.setattr("fastcnn.cli.export.check_target", lambda *given, **options: stop(RequestError("went on")))
    taken = cli(*[word.format(right) for word in args])
    assert "is not one of" not in taken.stderr, taken.stderr
    assert "invalid value" not in taken.stderr


def stop(error):
    raise error


def test_every_choice_of_every_command_is_tried_above():
    tried = {(tuple(word for word in args[:2] if word in ("bench", "layers")) or (args[0],), args[args.index("{}") - 1]) for args, _, _ in CHOICES}
    found = set()
    for path, command in commands(typer.main.get_command(app)):
        for name, type_ in get_type_hints(inspect.unwrap(command.callback)).items():
            if any(isinstance(one, type) and issubclass(one, Enum) for one in (type_, *get_args(type_))):
                found.add((path, f"--{name.replace('_', '-')}"))
    assert found == tried


def commands(command, path=()):
    """(words after fastcnn, command), `bench` standing for its default."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, path if name == getattr(command, "default", None) else (*path, name))


@pytest.mark.parametrize("name", ["ResNet50", "resnet-50", "RESNET_50"])
def test_names_of_models_are_forgiven(cli, name, tmp_path):
    result = cli("export", name, "--onnx", "--precision", "fp32", "--batch-size", "nothing")
    assert "--batch-size is a whole number" in result.stderr
    (tmp_path / "r.json").write_text("{}")
    assert own_spelling([name, f"{name}@openvino", "r.json", "nothing"]) == ["resnet50", "resnet50@openvino", "r.json", "nothing"]
    (tmp_path / name).touch()
    assert own_spelling(name) == name, "a file of that name"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["exprot"], "did you mean 'export'"),
        (["list", "--jsn"], "--json"),
        (["info"], "model"),
        (["info", "simple_cnn", "--batch-size", "0"], "batch-size"),
        (["export", "simple_cnn", "--onnx", "--precision", "int4"], "fp16"),
        (["--bogus"], "--bogus"),
    ],
    ids=" ".join,
)
def test_usage_error_is_one_line_and_code_2(cli, args, said):
    result = cli(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr.lower()


@pytest.mark.parametrize("args", [["info", "inception_v33"], ["export", "inception_v33", "--onnx"], ["list", "inception_v33"]], ids=" ".join)
def test_unknown_model_names_the_nearest(cli, args, tmp_path):
    result = cli(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "did you mean inception_v3" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (ParityError("worst difference 0.5"), 1, "error: worst difference 0.5"),
        (BackendError("no such device: cuda:7"), 2, "error: no such device: cuda:7"),
        (UnknownNameError("model", "alexnt", ["alexnet"]), 2, "error: unknown model 'alexnt': did you mean alexnet?"),
        (OSError(errno.ENOSPC, "No space left on device", "big.onnx"), 2, "error: no space left on device: big.onnx"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: no space left on device: standard output, or a temporary file in "),
        (BackendError("gone: a\x1b[2J\x9bb\nc\udcff.png"), 2, r"error: gone: a\x1b[2J\x9bb\nc\udcff.png"),
        (RuntimeError("first\nsecond"), 3, "error: fastcnn failed: RuntimeError: first second"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exception_becomes_one_line_and_a_code(cli, monkeypatch, problem, code, said):
    def fail(pattern):
        raise problem

    monkeypatch.setattr(registry, "list_models", fail)
    result = cli("list")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == bool(said)


def test_debug_shows_the_traceback(cli, monkeypatch):
    def fail(pattern):
        raise RuntimeError("broken")

    monkeypatch.setattr(registry, "list_models", fail)
    result = cli("--debug", "list")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("error: fastcnn failed: RuntimeError: broken")


def test_exit_codes_of_a_real_process(fastcnn_process):
    assert fastcnn_process("list", "alexnet").returncode == 0
    assert fastcnn_process("list", "no such model").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE and closes pipes in another way")
def test_reader_that_goes_away_is_no_error(tmp_path, environment):
    """`fastcnn list | head -1` and the like: nothing on stderr, from us or from Python's own last flush."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastcnn", "list"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    complaint = process.stderr.read()
    assert process.wait() == 141
    assert complaint == b""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches a Windows process in another way")
@pytest.mark.parametrize(
    ("sent", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")], ids=lambda value: str(value)
)
def test_a_request_to_stop_is_one_line_and_leaves_no_file(tmp_path, environment, sent, code, said):
    command = [sys.executable, "-m", "fastcnn", "export", "resnet50", "--onnx"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stderr.readline()
    assert "seeded random weights" in first
    process.send_signal(sent)
    stdout, stderr = process.communicate()
    assert process.returncode == code, stderr
    assert stderr.splitlines()[-1] == said
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    ids=str,
)
def test_no_color_on_a_terminal(terminal, variables, coloured):
    shown = terminal("list", "alexnet", **variables)
    assert "alexnet" in shown
    assert ("\x1b[" in shown) == coloured


def test_narrow_terminal_says_which_columns_it_lacks(terminal):
    shown = terminal("info", "simple_cnn", NO_COLOR="1", COLUMNS="64")
    assert "note: columns left out to fit 64 characters: type, input" in shown
    assert "1×20×8×8" in shown
    assert "321,280" in shown


def test_ascii_terminal_is_no_error(fastcnn_process):
    done = fastcnn_process("list", "alexnet", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "3?224?224" in done.stdout


def test_completes_model_names(environment):
    variables = {**environment, "_FASTCNN_COMPLETE": "complete_bash", "COMP_WORDS": "fastcnn info inception_v", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from fastcnn.cli.app import app; app(prog_name='fastcnn')"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["inception_v3", "inception_v4"]
