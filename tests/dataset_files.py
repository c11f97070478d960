"""Tiny datasets in the files that torchvision reads: a bright stripe stands where the class says, in noise."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def striped(count: int, side: int, channels: int, *, classes: int = 10, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels (N, side, side, channels) and labels (N,), which run through the classes in turn."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.uint8) % classes
    pixels = generator.integers(0, 60, (count, side, side, channels), dtype=np.uint8)
    for picture, label in zip(pixels, labels, strict=True):
        start = 2 + int(label) * (side - 6) // 10
        picture[start : start + 3] = 255
    return pixels, labels


def write_mnist(folder: Path, *, train: int = 300, test: int = 100) -> Path:
    """Writes a torchvision MNIST root and returns it."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count, seed in (("train", train, 0), ("t10k", test, 1)):
        pixels, labels = striped(count, 28, 1, seed=seed)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(np.array([0x803, count, 28, 28], ">i4").tobytes() + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(np.array([0x801, count], ">i4").tobytes() + labels.tobytes())
    return folder


def write_cifar10(folder: Path, *, train: int = 100, test: int = 20, classes: int = 10) -> Path:
    """Writes a torchvision CIFAR-10 root, whose digests do not match the published ones, and returns it."""
    inside = folder / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    for batch in range(1, 6):
        _write_cifar10_batch(inside / f"data_batch_{batch}", train // 5, classes, batch)
    _write_cifar10_batch(inside / "test_batch", test, classes, 6)
    with (inside / "batches.meta").open("wb") as file:
        pickle.dump({"label_names": [f"class{label}" for label in range(10)]}, file)
    return folder


def _write_cifar10_batch(path: Path, count: int, classes: int, seed: int) -> None:
    pixels, labels = striped(count, 32, 3, classes=classes, seed=seed)
    with path.open("wb") as file:
        pickle.dump({"data": pixels.transpose(0, 3, 1, 2).reshape(count, -1), "labels": labels.tolist()}, file)


def write_image_folder(folder: Path, *, side: int = 40, per_class: int = 6, classes: tuple[str, ...] = ("cat", "dog", "owl")) -> Path:
    """Writes one folder of PNGs per class and returns `folder`."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        pixels, _ = striped(per_class, side, 3, classes=1, seed=label)
        for number, picture in enumerate(pixels):
            picture[:, :, label % 3] = 200
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder
