"""`fastcnn predict --shard`: killed at any moment and run again, the parts hold every picture once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from picture_support import write_pictures

from fastcnn.preprocessing import Preprocessing

PARTS = ("--part-format", "jsonl", "--batch-size", "4", "-o", "parts")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """An ONNX file of one convolution, made by hand: neither exporting nor predicting with it imports PyTorch."""
    folder = tmp_path_factory.mktemp("model")
    weights = np.random.default_rng(0).standard_normal((10, 1, 28, 28)).astype(np.float32) / 28
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in (("x", (1, 28, 28)), ("y", (10, 1, 1)))]
    graph = helper.make_graph([node], "m", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    (folder / "p.json").write_text(Preprocessing("L", 28, (28, 28), mean=(0.5,), std=(0.5,)).to_json())
    return (str(folder / "m.onnx"), "--preprocessing", str(folder / "p.json"))


def write_tars(folder: Path, count: int, each: int, corrupt: tuple[int, ...] = ()) -> list[str]:
    files = write_pictures(folder / "loose", count * each, corrupt)
    (folder / "tars").mkdir()
    for number in range(count):
        with tarfile.open(folder / "tars" / f"{number}.tar", "w") as tar:
            for file in files[number * each : (number + 1) * each]:
                tar.add(file, Path(file).name)
    return [Path(file).name for file in files]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_killed_at_random_and_run_again_the_parts_hold_every_picture_once(cli, model, tmp_path, environment):
    names = write_tars(tmp_path, 10, 12, corrupt=(5, 77))
    slow = "import time, fastcnn.scale.job as job; read = job.read_input; job.read_input = lambda *a: (time.sleep(0.01), read(*a))[1]"
    command = [sys.executable, "-c", f"{slow}; from fastcnn.cli import main; main()", "predict", *model, "tars", *PARTS, "--workers", "1"]
    parts = tmp_path / "parts"
    chance = random.Random(0)
    sent = [signal.SIGKILL, signal.SIGINT, signal.SIGKILL]
    for share, how in zip(("0/1", "0/2", "1/2"), sent, strict=True):
        before = len(rows(parts))
        process = subprocess.Popen([*command, "--shard", share], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(rows(parts)) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(how)
        assert process.wait(60) != 0, "it was stopped before its end"
        assert before < len(rows(parts)) < len(names)
        assert len(rows(parts)) % 12 == 0, "a part is whole or not there"
    for share in ("0/2", "1/2"):
        result = cli("predict", *model, "tars", *PARTS, "--shard", share)
        assert result.exit_code == 0, result.stderr
    found = rows(parts)
    assert sorted(row["file"] for row in found) == names
    assert sorted(row["file"] for row in found if row["error"]) == ["p0005.png", "p0077.png"]
    assert len(list(parts.iterdir())) == 10, "no draft of a killed run stays"
    again = cli("predict", *model, "tars", *PARTS, "--shard", "0/1")
    assert again.exit_code == 0
    assert "parts holds 10 of 10 parts already" in again.stderr
    assert rows(parts) == found


def test_progress_for_a_scheduler(cli, model, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcnn.cli.progress._JSON_EVERY", 0.0)
    write_tars(tmp_path, 3, 6, corrupt=(2,))
    result = cli("predict", *model, "tars", *PARTS, "--shard", "0/1", "--progress", "json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines] == ["start", *["progress"] * (len(lines) - 2), "end"]
    assert {line["output"] for line in lines} == {"parts"}
    assert [lines[-1][name] for name in ("done", "total", "pictures", "errors", "seconds_left")] == [3, 3, 18, 1, 0.0]
    assert [line["pictures"] for line in lines] == sorted(line["pictures"] for line in lines)
    assert len(lines) >= 2 + 6
    alone = cli("predict", *model, "loose", "--progress", "json", "-o", "a.jsonl")
    assert alone.exit_code == 1
    last = json.loads([line for line in alone.stderr.splitlines() if line.startswith("{")][-1])
    assert [last[name] for name in ("event", "unit", "done", "total", "errors", "output")] == ["end", "pictures", 18, 18, 1, "a.jsonl"]


def test_a_damaged_shard_is_named_and_the_others_are_done(cli, model, tmp_path):
    names = write_tars(tmp_path, 3, 4)
    path = tmp_path / "tars" / "1.tar"
    path.write_bytes(path.read_bytes()[:3000])
    result = cli("predict", *model, "tars", *PARTS, "--shard", "0/1")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "1 of 3 shards have no part" in errors[0]
    assert "tars/1.tar" in errors[0]
    assert sorted(row["file"] for row in rows(tmp_path / "parts")) == [*names[:4], *names[8:]]


BAD = {
    "out of range": (["tars", "--shard", "3/3", "-o", "parts"], "--shard 3/3 is out of range"),
    "no share": (["tars", "--shard", "first", "-o", "parts"], "--shard is i/n"),
    "no such source": (["gone", "--shard", "0/1", "-o", "parts"], "no file or folder gone"),
    "no such bucket": (["nosuch://b/x.tar", "--shard", "0/1", "-o", "parts"], "nosuch://b/x.tar cannot be read"),
    "no folder": (["tars", "--shard", "0/1"], "name it with --output"),
    "a file for parts": (["tars", "--shard", "0/1", "-o", "tars/0.tar"], "tars/0.tar is a file"),
    "parts in the input": (["tars", "--shard", "0/1", "-o", "tars/parts"], "tars/parts lies in tars"),
    "parts at a URL": (["tars", "--shard", "0/1", "-o", "s3://bucket/parts"], "is a URL"),
    "one table": (["tars", "--shard", "0/1", "-o", "parts", "--json"], "--json does not go with parts"),
    "quarantine": (["tars", "--shard", "0/1", "-o", "parts", "--quarantine", "q"], "--quarantine does not go with parts"),
    "twice": (["tars", "--shard", "0/1", "--ray", "local", "-o", "parts"], "give one of them"),
    "no parts": (["loose", "--part-format", "jsonl"], "--part-format is for parts"),
    "no ray": (["tars", "--shard", "0/1", "-o", "parts", "--ray-workers", "2"], "--ray-workers is for --ray"),
}


@pytest.mark.parametrize(("args", "said"), BAD.values(), ids=BAD)
def test_bad_request_is_one_line_and_writes_nothing(cli, model, tmp_path, args, said):
    write_tars(tmp_path, 1, 1)
    result = cli("predict", *model, *args)
    assert result.exit_code == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"loose", "tars"}
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["0.tar"]
