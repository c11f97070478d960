"""The loop: it learns, it leaves what it says, and an interrupted run ends like one that was not."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import write_image_folder, write_mnist
from PIL import Image
from safetensors import safe_open

from fastcnn.errors import FileFormatError, RequestError, Terminated, WeightsError
from fastcnn.models import create_model
from fastcnn.models.weights import DESCRIPTION_KEY, describe_weights
from fastcnn.training.augmentation import shift_and_mirror
from fastcnn.training.recipe import Recipe
from fastcnn.training.setup import RunSettings, train
from fastcnn.training.trainer import CHECKPOINT

RECIPE = Recipe(epochs=3, batch_size=32, validation=60, augment=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("mnist"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train("simple_cnn", "mnist", data, folder, RECIPE)


class StopAfter:
    """Sends this thread a signal after a number of epochs."""

    def __init__(self, epochs: int, number: signal.Signals = signal.SIGINT) -> None:
        self.epochs, self.number = epochs, number

    def step(self, epoch, done, steps, loss):
        pass

    def epoch(self, record, best):
        if record.epoch == self.epochs:
            signal.raise_signal(self.number)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_learns_and_leaves_everything(finished, data):
    folder, result = finished
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "curves.png", "history.csv", "simple_cnn.safetensors"]
    assert [record.epoch for record in result.history] == [1, 2, 3]
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert result.history[0].aux_loss == 0
    assert result.test.pictures == 100
    best = max(result.history, key=lambda record: (record.validation_accuracy, -record.validation_loss))
    assert result.best_epoch == best.epoch
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [record.train_loss for record in result.history]
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture))) > 10


def test_weights_describe_themselves(finished):
    folder, result = finished
    description = describe_weights(result.weights)
    assert (description["model"], description["dataset"], description["best_epoch"]) == ("simple_cnn", "mnist", result.best_epoch)
    assert description["recipe"] == RECIPE.to_dict()
    assert description["history"] == [record.results() for record in result.history]
    assert description["test"]["correct"] == result.test.correct
    assert description["pictures"] == {"train": 240, "validation": 60}
    assert str(folder) not in json.dumps(description)
    with safe_open(result.weights, "pt") as file:
        assert list(file.metadata()) == [DESCRIPTION_KEY]
    model = create_model("simple_cnn", result.weights)
    assert model.fastcnn_info.categories == tuple("0123456789")
    assert model.fastcnn_info.weights == "file: simple_cnn.safetensors"


def test_same_seed_same_bytes_and_another_seed_others(finished, data, tmp_path):
    again = train("simple_cnn", "mnist", data, tmp_path / "again", RECIPE)
    other = train("simple_cnn", "mnist", data, tmp_path / "other", Recipe(**{**RECIPE.to_dict(), "seed": 1}))
    assert digest(again.weights) == digest(finished[1].weights) != digest(other.weights)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_between_epochs_and_resumed(finished, data, tmp_path, number):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt) as stopped:
        train("simple_cnn", "mnist", data, tmp_path, RECIPE, progress=StopAfter(2, number))
    assert isinstance(stopped.value, Terminated) == (number == signal.SIGTERM)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    result = train("simple_cnn", "mnist", data, tmp_path, RECIPE, settings=RunSettings(resume=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(result.weights) == digest(finished[1].weights)
    assert [record.results() for record in result.history] == [record.results() for record in finished[1].history]


def test_killed_within_an_epoch_and_resumed(data, tmp_path, monkeypatch):
    """With dropout, whose random numbers come from the global state; each step leaves a checkpoint, and the process dies in the middle of one."""
    recipe = Recipe(epochs=2, batch_size=16, validation=20, schedule="cosine", weight_decay=1e-4)
    folder = write_image_folder(tmp_path / "pictures", side=32, per_class=24)
    whole = train("nin_cifar10", "imagefolder", folder, tmp_path / "whole", recipe)
    monkeypatch.setattr("fastcnn.training.trainer._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    original, calls = torch.optim.SGD.step, []

    def dying_step(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == 6:
            raise MemoryError
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", dying_step)
        with pytest.raises(MemoryError):
            train("nin_cifar10", "imagefolder", folder, tmp_path / "killed", recipe)
    state = torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 1)
    resumed = train("nin_cifar10", "imagefolder", folder, tmp_path / "killed", recipe, settings=RunSettings(resume=True))
    assert digest(resumed.weights) == digest(whole.weights)
    assert [record.results() for record in resumed.history] == [record.results() for record in whole.history]


def test_a_finished_run_resumes_to_the_same(finished, data):
    folder, result = finished
    before = digest(result.weights)
    again = train("simple_cnn", "mnist", data, folder, RECIPE, settings=RunSettings(resume=True))
    assert digest(again.weights) == before
    assert again.test == result.test


def test_checkpoint_of_another_run(finished, data, tmp_path):
    folder, _ = finished
    cases = [
        (("simple_cnn", "mnist", data, folder, Recipe(epochs=9)), {}, "holds a checkpoint: --resume goes on from it, --force starts again"),
        (("simple_cnn", "mnist", data, folder, Recipe(epochs=9)), {"resume": True}, "belongs to another run: its recipe is"),
        (("residual_mnist", "mnist", data, folder, RECIPE), {"resume": True}, "another run: its model_name is simple_cnn, not residual_mnist"),
        (("simple_cnn", "mnist", data, tmp_path / "none", RECIPE), {"resume": True}, "there is no checkpoint in"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(RequestError, match=message) as raised:
            train(*arguments, settings=RunSettings(**options))
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "none").exists()
    (tmp_path / CHECKPOINT).write_bytes(b"nothing of the kind")
    with pytest.raises(FileFormatError, match="is no checkpoint"):
        train("simple_cnn", "mnist", data, tmp_path, RECIPE, settings=RunSettings(resume=True))
    (tmp_path / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes())
    with pytest.raises(RequestError, match="the best weights of this run so far, is gone"):
        train("simple_cnn", "mnist", data, tmp_path, RECIPE, settings=RunSettings(resume=True))


def test_image_folder_sets_the_number_of_classes(tmp_path):
    folder = write_image_folder(tmp_path / "pictures", per_class=10)
    result = train("nin_cifar10", "imagefolder", folder, tmp_path / "run", Recipe(epochs=1, batch_size=8), settings=RunSettings(workers=1))
    assert result.test is None  # nothing was kept for the end
    model = create_model("nin_cifar10", result.weights)
    assert model.fastcnn_info.options["num_classes"] == 3
    assert model.fastcnn_info.categories == ("cat", "dog", "owl")
    with pytest.raises(WeightsError, match="of the wrong shape"):
        create_model("nin_cifar10", result.weights, num_classes=10)
    # On from there, with parts of their own.
    for part in ("train", "val", "test"):
        write_image_folder(tmp_path / "parts" / part, per_class=4)
    parts = train("nin_cifar10", "imagefolder", tmp_path / "parts", tmp_path / "on", Recipe(epochs=1, batch_size=8), weights=str(result.weights))
    assert parts.test.pictures == 12
    assert describe_weights(parts.weights)["started_from"] == "file: nin_cifar10.safetensors"
    write_image_folder(tmp_path / "five", classes=("a", "b", "c", "d", "e"))
    with pytest.raises(RequestError, match=r"has 5 classes, and the weights .* another number"):
        train("nin_cifar10", "imagefolder", tmp_path / "five", tmp_path / "no", weights=str(result.weights))


def test_parts_with_other_classes(tmp_path):
    write_image_folder(tmp_path / "train")
    write_image_folder(tmp_path / "val", classes=("cat", "dog", "fox"))
    with pytest.raises(RequestError, match="must hold the same classes: fox, owl are in one of them only"):
        train("nin_cifar10", "imagefolder", tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_is_an_error(data, tmp_path):
    with pytest.raises(RequestError, match=r"training diverged in epoch 1: the loss is (nan|inf); try a learning rate below 1e\+06"):
        train("residual_mnist", "mnist", data, tmp_path, Recipe(epochs=2, learning_rate=1e6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"learning_rate": 0.0}, "learning rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning rate must be above 0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight decay must be at least 0"),
        ({"schedule": "steps"}, "schedule is constant or cosine, not 'steps'"),
        ({"validation": 0}, "validation must be at least 1"),
    ],
)
def test_wrong_recipes(wrong, message):
    with pytest.raises(RequestError, match=message):
        Recipe(**wrong)


def test_schedules():
    assert [Recipe().factor(10)(step) for step in (0, 5, 10)] == [1, 1, 1]
    assert [Recipe(schedule="cosine").factor(10)(step) for step in (0, 5, 10, 11)] == pytest.approx([1, 0.5, 0, 0])


def test_a_last_batch_of_one_is_left_out(tmp_path):
    """BatchNorm cannot train on it."""
    folder = write_image_folder(tmp_path / "pictures", side=32, per_class=4)
    recipe = Recipe(epochs=1, batch_size=5, validation=1)  # 11 pictures: 5, 5 and 1
    result = train("resnet18_cifar10", "imagefolder", folder, tmp_path / "run", recipe)
    assert 0 <= result.history[0].train_accuracy <= 1
    with pytest.raises(RequestError, match="inception_v3 has BatchNorm, which cannot train on a batch of 1"):
        train("inception_v3", "imagefolder", folder, tmp_path / "other", Recipe(epochs=1, batch_size=1))


def test_shift_and_mirror():
    pixels = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    pixels[:, :, 8, 6] = 200
    shifted = shift_and_mirror(pixels, torch.Generator().manual_seed(0))
    assert shifted.shape == pixels.shape
    assert shifted.dtype == torch.uint8
    places = shifted[:, 0].flatten(1).argmax(1)
    rows, columns = places // 16, places % 16
    assert set(rows.tolist()) == {6, 7, 8, 9, 10}
    assert set(columns.tolist()) == {4, 5, 6, 7, 8} | {7, 8, 9, 10, 11}  # as it was, and mirrored to column 9
    grey = shift_and_mirror(pixels[:, :1], torch.Generator().manual_seed(0))
    assert set((grey[:, 0].flatten(1).argmax(1) % 16).tolist()) == {4, 5, 6, 7, 8}
    torch.testing.assert_close(shifted, shift_and_mirror(pixels, torch.Generator().manual_seed(0)), rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_on_cuda(data, tmp_path, autocast):
    """It learns there too, in channels_last, and resumes after an interrupt."""
    options = {"device": "cuda", "autocast": autocast}
    with pytest.raises(KeyboardInterrupt):
        train("residual_mnist", "mnist", data, tmp_path, RECIPE, progress=StopAfter(1), settings=RunSettings(**options))
    result = train("residual_mnist", "mnist", data, tmp_path, RECIPE, settings=RunSettings(resume=True, **options))
    assert [record.epoch for record in result.history] == [1, 2, 3]
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert {tensor.device.type for tensor in create_model("residual_mnist", result.weights).state_dict().values()} == {"cpu"}


def test_autocast_is_for_cuda(data, tmp_path):
    with pytest.raises(RequestError, match="autocast is for CUDA"):
        train("simple_cnn", "mnist", data, tmp_path, RECIPE, settings=RunSettings(autocast=True))
