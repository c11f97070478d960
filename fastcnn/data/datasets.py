"""The datasets by name, read by torchvision, at the size that a model's preprocessing gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastcnn.data import DATASETS
from fastcnn.data.pictures import Pictures, PicturesInMemory, PicturesOnDemand
from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.pictures import open_picture
from fastcnn.preprocessing import Preprocessing

Split = Literal["train", "validation", "test"]

_DIGITS = tuple(str(digit) for digit in range(10))
# torchvision's class, where its files lie below the folder, and the names of the classes where torchvision's own are not for display.
_IN_MEMORY: dict[str, tuple[str, str, tuple[str, ...] | None]] = {
    "mnist": ("MNIST", "MNIST/raw", _DIGITS),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw", None),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", None),
}
# Folders that hold a part of an image folder.
_PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


def open_dataset(name: str, folder: str | Path, split: Split, preprocessing: Preprocessing, *, download: bool = False) -> Pictures:
    """One part of a dataset, with its labels.

    Args:
        name: one of `fastcnn.data.DATASETS`. "imagefolder" is one folder of pictures per class, in `folder`/train, `folder`/val and
            `folder`/test, or straight in `folder`.
        folder: where torchvision finds the dataset: for MNIST the folder that holds MNIST/raw.
        split: "train", "test", or "validation", which image folders alone may have. To test on an image folder without a part of that
            name means its validation part, or else the folder itself.
        preprocessing: brings every picture to the size and channels of the model.
        download: let torchvision fetch what is missing.

    Raises:
        UnknownNameError: no such dataset.
        RequestError: it is not in `folder`, is damaged, could not be downloaded, or its pictures do not fit: grey ones are not made
            coloured for a model, nor the other way round.
    """
    if name not in DATASETS:
        raise UnknownNameError("dataset", name, DATASETS)
    folder = Path(folder)
    if name == "imagefolder":
        if download:
            raise RequestError("--download fetches mnist, fashion-mnist or cifar10; an imagefolder is your own")
        return _image_folder(folder, split, preprocessing)
    if split == "validation":
        raise RequestError(f"{name} has no validation part: train and test are those it has")
    pixels, labels, classes = _read(name, folder, split, download)
    title = f"{name} {split}"
    if (pixels.ndim == 3) != (preprocessing.channels == "L"):
        found = "grey" if pixels.ndim == 3 else "colour"
        raise RequestError(f"{name} has {found} pictures, and this model takes {preprocessing.channel_count} channel(s): choose another of either")
    if _is_identity(preprocessing, pixels.shape[1:3]):
        stacked = torch.from_numpy(pixels)
        stacked = stacked.unsqueeze(1) if stacked.dim() == 3 else stacked.permute(0, 3, 1, 2)
        if preprocessing.channels == "BGR":
            stacked = stacked.flip(1)
        return PicturesInMemory(title, stacked.contiguous(), labels, classes)
    return PicturesOnDemand(title, partial(_from_array, pixels), preprocessing.pixels, labels, classes)


def hold_out(pictures: Pictures, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, held out): the indices of all pictures but `count`, and of `count` drawn at random; both in rising order.

    Raises RequestError unless some are left on both sides.
    """
    if not 0 < count < len(pictures):
        raise RequestError(f"{count} validation pictures cannot be held out of the {len(pictures)} of {pictures.name}")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def _read(name: str, folder: Path, split: Split, download: bool) -> tuple[NDArray[np.uint8], Tensor, Sequence[str]]:
    """Pixels (N, H, W) or (N, H, W, 3), labels (N,) and class names, by torchvision."""
    from torchvision import datasets

    type_name, inside, names = _IN_MEMORY[name]
    dataset: Any
    try:
        dataset = getattr(datasets, type_name)(folder, train=split == "train", download=download)
    except Exception as error:  # torchvision raises RuntimeError for missing files, and whatever parsing or the network does for others
        if download:
            raise RequestError(f"torchvision could not get {name} into {folder}: {_first_line(error)}") from error
        if not (folder / inside).is_dir():
            raise RequestError(f"there is no {name} in {folder}: give the folder that holds {inside}, or --download to fetch it there") from error
        raise RequestError(f"{name} in {folder} is incomplete or damaged: {_first_line(error)}") from error
    pixels = np.asarray(dataset.data)
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    if not len(pixels) or len(pixels) != len(labels):
        raise RequestError(f"{name} in {folder} is damaged: {len(pixels)} pictures and {len(labels)} labels")
    return pixels, labels, names or dataset.classes


def _image_folder(folder: Path, split: Split, preprocessing: Preprocessing) -> Pictures:
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}")
    root = _part(folder, split) or (_part(folder, "validation") if split == "test" else None)
    if root is None and _part(folder, "train") is not None:
        raise RequestError(f"{folder} has pictures for training only: put those to test on into {folder / 'test'}, or name another folder")
    root = root or folder
    try:
        dataset = ImageFolder(str(root))
    except FileNotFoundError as error:
        raise RequestError(f"{root} is no image folder: it must hold one folder of pictures per class ({_first_line(error)})") from error
    paths = [path for path, _ in dataset.samples]
    labels = torch.tensor([label for _, label in dataset.samples])
    return PicturesOnDemand(str(root), partial(_from_file, paths), preprocessing.pixels, labels, dataset.classes, paths)


def has_part(name: str, folder: str | Path, split: Split) -> bool:
    """Whether a dataset keeps pictures apart for `split`."""
    return _part(Path(folder), split) is not None if name == "imagefolder" else split != "validation"


def _part(folder: Path, split: Split) -> Path | None:
    return next((folder / part for part in _PARTS[split] if (folder / part).is_dir()), None)


def _from_array(pixels: NDArray[np.uint8], index: int) -> Image.Image:
    return Image.fromarray(pixels[index])


def _from_file(paths: Sequence[str], index: int) -> Image.Image:
    return open_picture(paths[index])


def _is_identity(preprocessing: Preprocessing, size: Sequence[int]) -> bool:
    """Whether resize and crop leave pictures of that (height, width) as they are."""
    own = tuple(size)
    return preprocessing.resize in (None, own, min(own)) and preprocessing.crop in (None, own)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
