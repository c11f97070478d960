"""`fastcnn predict`: answers, exit codes, and runs that are killed and taken up again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from picture_support import write_pictures
from safetensors.torch import save_file

from fastcnn.export import export_onnx
from fastcnn.models import create_model

MODEL = ("simple_cnn", "--backend", "reference")


def answers(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_table_and_json_of_a_file_with_labels(cli, tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    names = [f"digit {number}" for number in range(10)]
    export_onnx(create_model("simple_cnn"), tmp_path / "m.onnx", torch.rand(1, 1, 28, 28), labels=names)
    table = cli("predict", "m.onnx", "pictures", "--top-k", 2)
    assert table.exit_code == 0, table.stderr
    rows = table.stdout.splitlines()
    assert rows[0].split() == ["picture", "rank", "class", "probability"]
    assert len(rows) == 1 + 3 * 2
    assert "pictures/p0000.png" in rows[1]
    assert "digit" in rows[1]
    lines = answers(cli("predict", "m.onnx", "pictures/*.png", "--json").stdout)
    assert [line["file"] for line in lines] == [f"pictures/p000{number}.png" for number in range(3)]
    assert all(len(line["top"]) == 5 and line["top"][0]["label"] == names[line["top"][0]["class"]] for line in lines)
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
    relabelled = answers(cli("predict", "m.onnx", "pictures", "--json", "--labels", "labels.txt").stdout)
    assert relabelled[0]["top"][0]["label"] in "abcdefghij"


def test_a_model_without_names_shows_numbers_and_says_that_it_is_random(cli, tmp_path):
    write_pictures(tmp_path / "pictures", 1)
    result = cli("predict", *MODEL, "pictures/p0000.png")
    assert result.exit_code == 0
    assert "class " in result.stdout
    assert "seeded random weights: its answers mean nothing" in result.stderr
    assert answers(cli("predict", *MODEL, "pictures", "--json").stdout)[0]["top"][0]["label"] is None


def test_a_file_that_takes_pixels(cli, tmp_path):
    write_pictures(tmp_path / "pictures", 5)
    assert cli("export", "simple_cnn", "--onnx", "--preprocess", "normalize", "--batch-size", 2).exit_code == 0
    own, reference = (answers(cli("predict", *source, "pictures", "--json", "--top-k", 1).stdout) for source in (["simple_cnn.onnx"], MODEL))
    assert [line["top"][0]["class"] for line in own] == [line["top"][0]["class"] for line in reference]


def test_a_thousand_pictures_ten_of_them_corrupt(cli, tmp_path):
    corrupt = range(7, 1000, 100)
    write_pictures(tmp_path / "pictures", 1000, corrupt)
    (tmp_path / "pictures" / "p0007.png").write_text("not a picture at all")
    result = cli("predict", *MODEL, "pictures", "--output", "answers.jsonl", "--quarantine", "bad.jsonl", "--batch-size", 32)
    assert result.exit_code == 1
    assert result.stdout == ""
    bad = [f"pictures/p{number:04}.png" for number in corrupt]
    assert [line["file"] for line in answers((tmp_path / "bad.jsonl").read_text())] == bad
    assert all(f"warning: {name}: " in result.stderr for name in bad)
    assert "error: 10 of 1000 pictures have no answer, listed in bad.jsonl" in result.stderr
    given = [line["file"] for line in answers((tmp_path / "answers.jsonl").read_text())]
    assert len(given) == 990
    assert given == sorted(given)
    assert not set(given) & set(bad)


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["killed", "Ctrl-C", "SIGTERM"]
)
def test_stopped_half_way_and_resumed_gives_the_same_file(cli, tmp_path, environment, sent, code):
    write_pictures(tmp_path / "pictures", 600, range(3, 600, 60))
    options = ("pictures", "--batch-size", "4", "--quarantine", "bad.jsonl")
    whole = cli("predict", *MODEL, *options, "--output", "whole.jsonl")
    assert whole.exit_code == 1
    list_of_bad = (tmp_path / "bad.jsonl").read_bytes()
    (tmp_path / "bad.jsonl").unlink()
    # What slows the pictures down keeps the run from ending before it is stopped.
    slow = "import time, fastcnn.prediction.run as run; read = run.read_input; run.read_input = lambda *a: (time.sleep(0.01), read(*a))[1]"
    command = [sys.executable, "-c", f"{slow}; from fastcnn.cli import main; main()", "predict", *MODEL, *options, "--output", "stopped.jsonl"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    stopped = tmp_path / "stopped.jsonl"
    while process.poll() is None and (not stopped.exists() or stopped.read_bytes().count(b"\n") < 60):
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait(60) == code
    lines = stopped.read_bytes().count(b"\n")
    assert 60 <= lines < 590
    assert not (tmp_path / "bad.jsonl").exists()
    refused = cli("predict", *MODEL, *options, "--output", "stopped.jsonl")
    assert refused.exit_code == 2
    assert "--resume goes on" in refused.stderr
    resumed = cli("predict", *MODEL, *options, "--output", "stopped.jsonl", "--resume")
    assert resumed.exit_code == 1
    assert "holds" in resumed.stderr
    assert stopped.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "bad.jsonl").read_bytes() == list_of_bad
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "pictures", "stopped.jsonl", "whole.jsonl"]


def test_own_preprocessing_and_a_warning_where_it_is_another(cli, tmp_path):
    write_pictures(tmp_path / "pictures", 1)
    description = {"channels": "L", "resize": 28, "crop": [28, 28], "interpolation": "nearest", "antialias": True}
    description |= {"value_range": [0.0, 1.0], "mean": [0.0], "std": [1.0]}
    (tmp_path / "p.json").write_text(json.dumps(description))
    result = cli("predict", *MODEL, "pictures", "--preprocessing", "p.json")
    assert result.exit_code == 0
    assert "warning: simple_cnn was made for another preprocessing than the one given" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
@pytest.mark.parametrize("where", ["table", "json", "terminal"])
def test_names_that_a_terminal_would_obey_are_shown_escaped(cli, terminal, tmp_path, where):
    (good,) = write_pictures(tmp_path / "pictures", 1)
    names = [os.fsdecode(name) for name in (b"red\x1b[31m.png", "eight\x9b2Jbit.png".encode(), b"line\nbreak.png", b"latin\xff.png")]
    for name in names:
        Path(tmp_path / "pictures" / name).write_bytes(Path(good).read_bytes())
    bad = tmp_path / "pictures" / "bad\x1b]0;title\x07.png"
    if where == "terminal":
        shown = terminal("predict", *MODEL, "pictures", NO_COLOR="1", COLUMNS="120").rpartition("\x1b[2K")[2]  # what follows the bars
    else:
        bad.touch()
        result = cli("predict", *MODEL, "pictures", *(["--json"] if where == "json" else []))
        assert result.exit_code == 1, result.stderr
        assert r"warning: pictures/bad\x1b]0;title\x07.png: not a picture" in result.stderr
        shown = result.stdout + result.stderr
    assert not re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", shown), shown
    if where == "json":
        assert {Path(line["file"]).name for line in answers(result.stdout)} == {"p0000.png", *names}
    else:
        assert all(text in shown for text in (r"red\x1b[31m.png", r"eight\x9b2Jbit.png", r"line\nbreak.png", r"latin\udcff.png"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_pipe_among_the_pictures_is_set_aside_with_its_reason(cli, tmp_path):
    write_pictures(tmp_path / "pictures", 1)
    os.mkfifo(tmp_path / "pictures" / "a.png")
    result = cli("predict", *MODEL, "pictures", "--quarantine", "bad.jsonl")
    assert result.exit_code == 1
    assert "warning: pictures/a.png: not a file, but a device or a pipe" in result.stderr
    assert answers((tmp_path / "bad.jsonl").read_text()) == [{"file": "pictures/a.png", "reason": "not a file, but a device or a pipe"}]


BAD = {
    "nothing matches": ([*MODEL, "gone*.png"], "gone*.png matches no picture"),
    "no such picture": ([*MODEL, "gone.png"], "gone.png"),
    "empty folder": ([*MODEL, "empty"], "no picture in the folder empty"),
    "unknown model": (["simple_cn", "pictures"], "did you mean simple_cnn"),
    "no such file": (["gone.onnx", "pictures"], "gone.onnx does not exist"),
    "no model": (["pictures/p0000.png", "pictures"], "neither ONNX"),
    "weights alone": (["r50.safetensors", "pictures"], "name the model that they belong to, as in `fastcnn predict MODEL --weights r50.safetensors`"),
    "own module": (["own.onnx", "pictures"], "own.onnx does not say how a picture becomes its input: give --preprocessing FILE"),
    "resume of nothing": ([*MODEL, "pictures", "--resume"], "--output"),
    "two outputs": ([*MODEL, "pictures", "--json", "--output", "a.jsonl"], "--json"),
    "no such folder": ([*MODEL, "pictures", "--output", "gone/a.jsonl"], "gone"),
    "a folder": ([*MODEL, "pictures", "--quarantine", "empty"], "empty is a folder"),
    "no such weights": ([*MODEL, "pictures", "--weights", "gone.pth"], "gone.pth"),
    "damaged description": ([*MODEL, "pictures", "--preprocessing", "pictures/p0000.png"], "p0000.png is no JSON"),
    "no such backend": (["simple_cnn", "pictures", "--backend", "onnx"], "unknown backend 'onnx'"),
    "no pictures": (["simple_cnn"], "missing argument"),
}


@pytest.mark.parametrize(("args", "said"), BAD.values(), ids=BAD)
def test_bad_request_is_one_line_and_writes_nothing(cli, tmp_path, args, said):
    write_pictures(tmp_path / "pictures", 1)
    (tmp_path / "empty").mkdir()
    files = {"empty", "pictures"}
    if args[0] == "r50.safetensors":
        save_file({"x": torch.zeros(3)}, tmp_path / args[0])
        files.add(args[0])
    if args[0] == "own.onnx":
        export_onnx(
            torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval(),
            tmp_path / args[0],
            torch.rand(1, 3, 16, 16),
        )
        files.add(args[0])
    result = cli("predict", *args)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert said in errors[0]
    assert {path.name for path in tmp_path.iterdir()} == files


def test_existing_files_are_kept_unless_forced(cli, tmp_path):
    write_pictures(tmp_path / "pictures", 2)
    mine = Path(tmp_path / "a.jsonl")
    mine.write_text("mine\n")
    for extra in ((), ("--resume",)):
        result = cli("predict", *MODEL, "pictures", "--output", "a.jsonl", *extra)
        assert result.exit_code == 2
        assert mine.read_text() == "mine\n"
    assert cli("predict", *MODEL, "pictures", "--output", "a.jsonl", "--force").exit_code == 0
    assert len(answers(mine.read_text())) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
@pytest.mark.parametrize("command", [("predict", "simple_cnn", "pictures"), ("evaluate", "simple_cnn", "--dataset", "mnist", "--data", "pictures")])
def test_a_device_that_is_not_there_is_told(cli, tmp_path, command):
    write_pictures(tmp_path / "pictures", 1)
    result = cli(*command, "--device", "cuda")
    assert result.exit_code == 2
    assert "PyTorch finds no CUDA device here" in result.stderr
