"""Pictures with labels, in memory or in files, behind one interface: batches of pixels in a given order."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastcnn.errors import InputError, RequestError
from fastcnn.pictures import PictureError

Batch = tuple[Tensor, Tensor]

# A damaged file, and a picture that the preprocessing cannot take.
_UNREADABLE = (PictureError, InputError)


class Pictures(ABC):
    """Labelled pictures of one size.

    Attributes:
        name: of the dataset and its part, for messages.
        labels: (N,) int64.
        classes: the name of each label.
    """

    def __init__(self, name: str, labels: Tensor, classes: Sequence[str]) -> None:
        self.name, self.labels, self.classes = name, labels, tuple(classes)

    def __len__(self) -> int:
        return self.labels.numel()

    @abstractmethod
    def batches(self, order: Tensor, batch_size: int, workers: int = 0) -> Iterator[Batch]:
        """Pixels (B, C, H, W) uint8 and labels (B,) int64 of the pictures `order` (N,) int64, in that order; the last batch may be smaller.

        `workers` processes decode ahead where pictures are files. Raises RequestError for a file that cannot be read.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """What a person finds one picture by."""

    def to(self, device: torch.device) -> Pictures:
        """The same pictures; those held in memory move to the device."""
        return self


class PicturesInMemory(Pictures):
    """A set that was decoded once, (N, C, H, W) uint8: a loader of single pictures would starve a small network."""

    def __init__(self, name: str, pixels: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        super().__init__(name, labels, classes)
        self.pixels = pixels

    def batches(self, order: Tensor, batch_size: int, workers: int = 0) -> Iterator[Batch]:
        """See `Pictures.batches`; nothing is decoded, and `workers` are not needed."""
        order = order.to(self.pixels.device)
        for part in order.split(batch_size) if order.numel() else ():
            yield self.pixels[part], self.labels[part]

    def where(self, index: int) -> str:
        """The name of the set and the picture's number."""
        return f"{self.name} {index}"

    def to(self, device: torch.device) -> PicturesInMemory:
        """The same pictures and labels on a device."""
        return PicturesInMemory(self.name, self.pixels.to(device), self.labels.to(device), self.classes)


class PicturesOnDemand(Pictures):
    """Pictures that are opened, converted and resized each time they are needed.

    Args:
        open_picture: index -> a Pillow picture; raises PictureError where it cannot.
        to_pixels: a Pillow picture -> (C, H, W) uint8.
        names: of the pictures; their number in the set where there are none.
    """

    def __init__(
        self,
        name: str,
        open_picture: Callable[[int], Image.Image],
        to_pixels: Callable[[Image.Image], Tensor],
        labels: Tensor,
        classes: Sequence[str],
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, labels, classes)
        self._open, self._to_pixels, self._names = open_picture, to_pixels, names

    def batches(self, order: Tensor, batch_size: int, workers: int = 0) -> Iterator[Batch]:
        """See `Pictures.batches`; `workers` processes open and decode ahead."""
        loader = DataLoader(
            _Decoded(self, order.tolist()),
            batch_size,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_requests_to_stop,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global one, which a resumed run must find untouched
        )
        for batch in loader:
            if isinstance(batch, str):
                raise RequestError(batch)
            yield batch

    def where(self, index: int) -> str:
        """The picture's name; the name of the set and its number where it has none."""
        return self._names[index] if self._names is not None else f"{self.name} {index}"

    def open(self, index: int) -> Image.Image:
        """One picture as it is in its file. Raises RequestError where it cannot be read."""
        try:
            return self._open(index)
        except _UNREADABLE as error:
            raise RequestError(self._complaint(index, error)) from error

    def decode(self, index: int) -> tuple[Tensor, int] | str:
        """Pixels and label, or what is wrong with the picture: an exception from another process would carry its traceback."""
        try:
            return self._to_pixels(self._open(index)), int(self.labels[index])
        except _UNREADABLE as error:
            return self._complaint(index, error)

    def _complaint(self, index: int, error: Exception) -> str:
        return f"{self.where(index)} cannot be read as a picture: {error}"


class _Decoded(Dataset):
    def __init__(self, pictures: PicturesOnDemand, order: Sequence[int]) -> None:
        self._pictures, self._order = pictures, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | str:
        return self._pictures.decode(self._order[position])


def _collate(samples: Sequence[tuple[Tensor, int] | str]) -> Batch | str:
    good = [sample for sample in samples if not isinstance(sample, str)]
    if len(good) < len(samples):
        return next(sample for sample in samples if isinstance(sample, str))
    return torch.stack([pixels for pixels, _ in good]), torch.tensor([label for _, label in good])


def _ignore_requests_to_stop(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and SIGTERM may reach every process of a service; the training process alone decides when to
    stop, and these end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
