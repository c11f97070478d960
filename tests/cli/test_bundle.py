"""`fastcnn bundle`: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from fastcnn.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def commands_of_the_page() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith("fastcnn ")]


def test_the_first_command_of_the_page_makes_a_repository(cli, tmp_path):
    first = commands_of_the_page()[0]
    result = cli(*shlex.split(first)[1:])
    assert result.exit_code == 0, result.stderr
    assert "sha256sum -c SHA256SUMS" in result.stdout
    assert "tritonserver --model-repository" in result.stdout
    assert {one.name for one in tmp_path.iterdir()} == {"repo"}
    if shutil.which("sha256sum"):
        sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "repo", capture_output=True, text=True, check=False)
        assert sums.returncode == 0, sums.stdout
    file = tmp_path / "repo" / "simple_cnn" / "1" / "model.onnx"
    verified = cli("verify", file, "--attestation", tmp_path / "repo" / "model.onnx.intoto.json")
    assert verified.exit_code == 0, verified.stderr
    assert "label_filename" in (tmp_path / "repo" / "simple_cnn" / "config.pbtxt").read_text()

    again = cli("bundle", "simple_cnn", "-o", "repo")
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr == "error: repo exists and is not empty: give -o the name of a new folder\n"

    of_file = cli("bundle", file, "-o", "ovms", "--server", "ovms", "--name", "digits", "--json")
    assert of_file.exit_code == 0, of_file.stderr
    answer: dict[str, Any] = json.loads(of_file.stdout)
    assert (answer["server"], answer["backend"], answer["name"], answer["parity"]["passed"]) == ("ovms", "openvino", "digits", True)
    assert {"config.json", "digits/1/model.onnx"} <= set(answer["files"])

    for options in (["--softmax"], ["--weights", "mnist"], ["--precision", "fp16"], ["--num-classes", "10"]):
        refused = cli("bundle", file, "-o", "other", *options)
        assert refused.exit_code == 2
        assert "is a finished file" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert {one.name for one in tmp_path.iterdir()} == {"repo", "ovms"}


@pytest.mark.parametrize("line", commands_of_the_page())
def test_every_command_of_the_page_is_understood(line):
    program, name, *arguments = shlex.split(line)
    assert (program, name) == ("fastcnn", "bundle")
    root: Any = typer.main.get_command(app)
    assert root.commands[name].make_context(name, arguments).params["out"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["simple_cnn"], "missing option '-o'"),
        (["simple_cnn", "-o", "repo", "--server", "seldon"], "'seldon' is not one of"),
        (["simple_cnn", "-o", "repo", "--backend", "caffe"], "'caffe' is not one of"),
        (["simple_cnn", "-o", "repo", "--server", "ovms", "--backend", "tensorrt"], "OpenVINO Model Server has no backend tensorrt: give openvino"),
        (["simple_cnn", "-o", "repo", "--server", "kserve"], "KServe needs --storage-uri"),
        (["simple_cnn", "-o", "repo", "--precision", "int8"], "bundle the file that `fastcnn export` makes"),
        (["simple_cnn", "-o", "repo", "--precision", "int4"], "unknown precision 'int4'"),
        (["simple_cnm", "-o", "repo"], "did you mean simple_cnn"),
        (["gone.onnx", "-o", "repo"], "gone.onnx does not exist"),
        (["simple_cnn", "-o", "gone/repo"], "there is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line_and_leaves_nothing(cli, tmp_path, args, said):
    result = cli("bundle", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
