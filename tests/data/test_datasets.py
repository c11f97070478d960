"""Datasets by name: what comes out, and every way in which a folder can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataset_files import striped, write_cifar10, write_image_folder, write_mnist
from PIL import Image

from fastcnn.data.datasets import has_part, hold_out, open_dataset
from fastcnn.data.pictures import PicturesInMemory, PicturesOnDemand
from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.models import model_spec

GREY = model_spec("simple_cnn").preprocessing
COLOUR = model_spec("vgg_cifar10").preprocessing


@pytest.fixture
def any_digest(monkeypatch):
    """torchvision takes CIFAR-10 files that are not the published ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)


def all_of(pictures, workers=0):
    batches = list(pictures.batches(torch.arange(len(pictures)), 32, workers))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


def test_mnist_is_held_in_memory(tmp_path):
    train, test = (open_dataset("mnist", write_mnist(tmp_path / split), split, GREY) for split in ("train", "test"))
    assert isinstance(train, PicturesInMemory)
    assert (len(train), len(test)) == (300, 100)
    assert train.classes == tuple("0123456789")
    pixels, labels = all_of(test)
    expected, expected_labels = striped(100, 28, 1, seed=1)
    torch.testing.assert_close(pixels, torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=0, atol=0)
    assert labels.tolist() == expected_labels.tolist()


def test_pixels_in_memory_are_those_of_the_preprocessing(tmp_path):
    """The short way round Pillow gives what the long one gives."""
    pictures = open_dataset("mnist", write_mnist(tmp_path), "test", GREY)
    source, _ = striped(100, 28, 1, seed=1)
    for index in (0, 57):
        torch.testing.assert_close(pictures.pixels[index], GREY.pixels(Image.fromarray(source[index, ..., 0])), rtol=0, atol=0)


def test_another_size_is_made_by_the_preprocessing(tmp_path):
    larger = GREY.at_size(40, 40)
    pictures = open_dataset("mnist", write_mnist(tmp_path), "test", larger)
    assert isinstance(pictures, PicturesOnDemand)
    source, _ = striped(100, 28, 1, seed=1)
    pixels, _ = all_of(pictures)
    torch.testing.assert_close(pixels[3], larger.pixels(Image.fromarray(source[3, ..., 0])), rtol=0, atol=0)


def test_cifar10(tmp_path, any_digest):
    pictures = open_dataset("cifar10", write_cifar10(tmp_path), "train", COLOUR)
    assert isinstance(pictures, PicturesInMemory)
    pixels, labels = all_of(pictures)
    assert tuple(pixels.shape) == (100, 3, 32, 32)
    assert labels[:20].tolist() == [*range(10), *range(10)]
    assert pictures.classes[3] == "class3"


def test_order_and_small_last_batch(tmp_path):
    pictures = open_dataset("mnist", write_mnist(tmp_path), "test", GREY)
    order = torch.tensor([5, 99, 0, 42, 7])
    batches = list(pictures.batches(order, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([pixels for pixels, _ in batches]), pictures.pixels[order], rtol=0, atol=0)
    assert list(pictures.batches(torch.arange(0), 2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_image_folder(tmp_path, workers):
    write_image_folder(tmp_path)
    pictures = open_dataset("imagefolder", tmp_path, "test", COLOUR)
    assert pictures.classes == ("cat", "dog", "owl")
    before = torch.get_rng_state()
    pixels, labels = all_of(pictures, workers)
    assert torch.equal(torch.get_rng_state(), before)  # a resumed run depends on it
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    with Image.open(pictures.where(7)) as image:
        torch.testing.assert_close(pixels[7], COLOUR.pixels(image), rtol=0, atol=0)


def test_parts_of_an_image_folder(tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        write_image_folder(tmp_path / part, per_class=count)
    assert len(open_dataset("imagefolder", tmp_path, "train", COLOUR)) == 12
    assert len(open_dataset("imagefolder", tmp_path, "validation", COLOUR)) == 6
    assert len(open_dataset("imagefolder", tmp_path, "test", COLOUR)) == 6
    assert [has_part("imagefolder", tmp_path, split) for split in ("train", "validation", "test")] == [True, True, False]
    assert [has_part("mnist", tmp_path, split) for split in ("train", "validation", "test")] == [True, False, True]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_named_in_one_line(tmp_path, workers):
    write_image_folder(tmp_path)
    bad = tmp_path / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    pictures = open_dataset("imagefolder", tmp_path, "test", COLOUR)
    with pytest.raises(RequestError) as raised:
        all_of(pictures, workers)
    assert str(raised.value).startswith(f"{bad} cannot be read as a picture: ")
    assert "\n" not in str(raised.value)


def test_hold_out():
    pictures = PicturesInMemory("set", torch.zeros(100, 1, 2, 2, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64), ["a"])
    kept, held = hold_out(pictures, 30, seed=1)
    assert (len(kept), len(held)) == (70, 30)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(100))
    assert hold_out(pictures, 30, seed=1)[1].tolist() == held.tolist() != hold_out(pictures, 30, seed=2)[1].tolist()
    for count in (0, 100):
        with pytest.raises(RequestError, match=f"{count} validation pictures cannot be held out of the 100 of set"):
            hold_out(pictures, count, seed=0)


def damage(folder):
    file = folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:5000])


def test_wrong_requests(tmp_path):
    root = write_mnist(tmp_path / "good")
    damage(write_mnist(tmp_path / "damaged"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "train only" / "train" / "a").mkdir(parents=True)
    cases = [
        (("mnist", tmp_path / "nowhere", "train", GREY), "there is no mnist in .*nowhere: give the folder that holds MNIST/raw"),
        (("mnist", tmp_path / "damaged", "train", GREY), "is incomplete or damaged"),
        (("mnist", root, "train", COLOUR), r"mnist has grey pictures, and this model takes 3 channel\(s\)"),
        (("imagefolder", tmp_path / "nowhere", "train", COLOUR), "there is no folder"),
        (("imagefolder", tmp_path / "empty", "train", COLOUR), "is no image folder: it must hold one folder of pictures per class"),
        (("imagefolder", tmp_path / "train only", "test", COLOUR), "has pictures for training only"),
    ]
    for arguments, message in cases:
        with pytest.raises(RequestError, match=message) as raised:
            open_dataset(*arguments)
        assert "\n" not in str(raised.value)
    with pytest.raises(UnknownNameError, match="unknown dataset 'mnits': did you mean mnist"):
        open_dataset("mnits", root, "train", GREY)
    with pytest.raises(RequestError, match="an imagefolder is your own"):
        open_dataset("imagefolder", tmp_path, "train", COLOUR, download=True)


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    with pytest.raises(RequestError, match="there is no fashion-mnist"):
        open_dataset("fashion-mnist", tmp_path, "train", GREY)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RequestError, match=r"torchvision could not get fashion-mnist into .*: a download was tried"):
        open_dataset("fashion-mnist", tmp_path, "train", GREY, download=True)


def test_grey_pictures_of_a_folder_fit_a_grey_model(tmp_path):
    (tmp_path / "one").mkdir()
    Image.fromarray(np.full((30, 50), 90, np.uint8)).save(tmp_path / "one" / "a.png")
    pixels, _ = all_of(open_dataset("imagefolder", tmp_path, "train", GREY))
    assert tuple(pixels.shape) == (1, 1, 28, 28)
    assert pixels.unique().tolist() == [90]
