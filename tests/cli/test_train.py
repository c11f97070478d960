from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest
from dataset_files import write_image_folder, write_mnist


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def test_trains_and_prints_a_table(cli, data, tmp_path):
    result = cli("train", "simple_cnn", "--dataset", "mnist", "--data", data, "--epochs", 2, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "runs" / "simple_cnn-mnist" / "simple_cnn.safetensors").is_file()
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["epoch", "lr"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert "of 100 right" in result.stdout
    assert [line for line in result.stderr.splitlines() if line.startswith("epoch ")] == result.stderr.splitlines()
    assert "epoch 2/2: loss " in result.stderr


def test_json_and_the_options(cli, data, tmp_path):
    options = ["--lr", 0.02, "--momentum", 0.5, "--schedule", "cosine", "--validation", 50, "--seed", 3, "--batch-size", 50, "--epochs", 1]
    result = cli("train", "simple_cnn", "--dataset", "mnist", "--data", data, "--json", "-o", "here", *options)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["best_epoch"] == 1
    assert answer["weights"] == "here/simple_cnn.safetensors"
    assert answer["test"]["pictures"] == 100
    from fastcnn.models.weights import describe_weights

    recipe = describe_weights(tmp_path / answer["weights"])["recipe"]
    assert (recipe["learning_rate"], recipe["momentum"], recipe["schedule"]) == (0.02, 0.5, "cosine")
    assert (recipe["validation"], recipe["seed"], recipe["batch_size"]) == (50, 3, 50)


def test_existing_run(cli, data):
    train = ["train", "simple_cnn", "--dataset", "mnist", "--data", data, "--epochs", 1]
    assert cli(*train).exit_code == 0
    refused = cli(*train)
    assert refused.exit_code == 2
    assert "--resume goes on from it, --force starts again" in refused.stderr
    assert cli(*train, "--resume").exit_code == 0
    assert cli(*train, "--force").exit_code == 0
    other = cli(*train[:-1], 4, "--resume")
    assert other.exit_code == 2
    assert "has epochs 1, not 4: --resume keeps its recipe" in other.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C of another process is a POSIX signal")
def test_interrupted_and_killed_processes_resume_to_the_same_bits(cli, environment, tmp_path):
    data = write_mnist(tmp_path / "data", train=2000)
    command = [sys.executable, "-m", "fastcnn", "train", "simple_cnn", "--dataset", "mnist", "--data", str(data), "--epochs", "5", "--threads", "1"]

    def start(folder: str, *more: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, "-o", folder, *more], cwd=tmp_path, env=environment, stderr=pipe, stdout=pipe, text=True)

    def wait_for(process: subprocess.Popen[str], text: str) -> None:
        for line in process.stderr:
            if text in line:
                time.sleep(0.05)  # into the middle of the next epoch
                return
        raise AssertionError(f"{text!r} never came")

    assert cli(*command[3:], "-o", "whole").exit_code == 0
    stopped = start("stopped")
    wait_for(stopped, "epoch 1/5")
    stopped.send_signal(signal.SIGINT)
    _, rest = stopped.communicate()
    assert stopped.returncode == 130
    assert rest.splitlines()[-2:] == ["note: stopped holds a checkpoint: the same command with --resume goes on from it", "interrupted"]
    again = start("stopped", "--resume")
    wait_for(again, "epoch 3/5")
    again.kill()
    again.communicate()
    last = start("stopped", "--resume")
    assert last.wait() == 0, last.stderr.read()
    digests = [hashlib.sha256((tmp_path / folder / "simple_cnn.safetensors").read_bytes()).hexdigest() for folder in ("whole", "stopped")]
    assert digests[0] == digests[1]


def test_wrong_requests(cli, data, tmp_path):
    write_image_folder(tmp_path / "pictures")
    mnist = ["--dataset", "mnist", "--data", data]
    cases = [
        (["simple_cnm", *mnist], "did you mean simple_cnn"),
        (["vgg_cifar10", *mnist], "mnist has grey pictures, and this model takes 3 channel(s)"),
        (["simple_cnn", "--dataset", "mnits", "--data", data], "'mnits' is not one of"),
        (["simple_cnn", "--dataset", "mnist", "--data", tmp_path / "pictures"], "there is no mnist in"),
        (["simple_cnn", "--dataset", "imagefolder", "--data", tmp_path / "nowhere"], "there is no folder"),
        (["simple_cnn", *mnist, "--validation", 300], "300 validation pictures cannot be held out of the 300"),
        (["simple_cnn", *mnist, "--lr", -1], "learning rate must be above 0"),
        (["simple_cnn", *mnist, "--resume"], "there is no checkpoint"),
        (["simple_cnn", *mnist, "--resume", "--force"], "give one of them"),
        (["simple_cnn", *mnist, "--weights", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["simple_cnn", "--dataset", "imagefolder", "--data", tmp_path / "pictures", "--weights", "mnist"], "has 3 classes, and the weights mnist"),
        (["simple_cnn", *mnist, "-o", data / "MNIST" / "raw" / "train-labels-idx1-ubyte"], "is a file: name a folder"),
    ]
    for arguments, said in cases:
        result = cli("train", *arguments)
        lines = result.stderr.splitlines()
        assert (result.exit_code, result.stdout) == (2, ""), (arguments, result.stderr)
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_person_sees_a_bar(terminal, data):
    shown = terminal("train", "simple_cnn", "--dataset", "mnist", "--data", str(data), "--epochs", "1")
    assert "simple_cnn on mnist" in shown
    assert "epoch 1/1: loss" in shown
