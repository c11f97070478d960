"""Accuracy, loss and confusion matrix over labelled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ClassMetrics:
    """One class: how many pictures are of it, how many were taken for it, and how many of both.

    `precision` and `recall` are None where nothing was taken for the class, or no picture is of it.
    """

    label: int
    name: str
    pictures: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float | None:
        """Of the pictures that were taken for the class, the share that is of it."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Of the pictures of the class, the share that was taken for it."""
        return self.correct / self.pictures if self.pictures else None


@dataclass(frozen=True)
class Metrics:
    """What a model answered on a set of pictures.

    Attributes:
        pictures: how many.
        correct: best class right.
        correct_top5: right class among the five best; every one where there are five classes or fewer.
        loss: mean cross-entropy, natural logarithm.
        classes: their names.
        confusion: confusion[i][j] pictures of class i were taken for class j.
    """

    pictures: int
    correct: int
    correct_top5: int
    loss: float
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def top1(self) -> float:
        """Share of pictures whose best class is right, 0 to 1."""
        return self.correct / self.pictures

    @property
    def top5(self) -> float:
        """Share of pictures whose right class is among the five best, 0 to 1."""
        return self.correct_top5 / self.pictures

    def per_class(self) -> list[ClassMetrics]:
        """A row per class, in the order of the labels."""
        columns = [sum(row[label] for row in self.confusion) for label in range(len(self.classes))]
        return [
            ClassMetrics(label, name, sum(self.confusion[label]), columns[label], self.confusion[label][label])
            for label, name in enumerate(self.classes)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "pictures": self.pictures,
            "correct": self.correct,
            "top1": self.top1,
            "correct_top5": self.correct_top5,
            "top5": self.top5,
            "loss": self.loss,
            "classes": [
                {"name": row.name, "pictures": row.pictures, "predicted": row.predicted, "correct": row.correct, "precision": row.precision}
                | {"recall": row.recall}
                for row in self.per_class()
            ],
            "confusion": [list(row) for row in self.confusion],
        }


class Tally:
    """Adds up answers batch by batch, on the device where they are; only `metrics` waits for it."""

    def __init__(self, classes: Sequence[str], device: torch.device | str = "cpu") -> None:
        self._classes = tuple(classes)
        count = len(self._classes)
        self._confusion = torch.zeros(count * count, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, scores: Tensor, labels: Tensor, *, probabilities: bool = False) -> Tensor:
        """Scores (B, K) and labels (B,) int64 -> the best class of each, (B,). Scores are logits, or `probabilities`.

        Of equal scores the first class counts as the best.
        """
        scores = scores.double()
        # A probability of 0 has no logarithm: the smallest of float32 stands for it.
        logarithms = scores.clamp_min(torch.finfo(torch.float32).tiny).log() if probabilities else F.log_softmax(scores, 1)
        self._loss += F.nll_loss(logarithms, labels, reduction="sum")
        best = scores.argmax(1)
        count = len(self._classes)
        self._confusion += torch.bincount(labels * count + best, minlength=count * count)
        self._top5 += (scores.topk(min(5, count), 1).indices == labels[:, None]).sum()
        return best

    def metrics(self) -> Metrics:
        """The sums so far; at least one picture must have been added."""
        count = len(self._classes)
        confusion = self._confusion.view(count, count).cpu()
        pictures = int(confusion.sum())
        return Metrics(
            pictures,
            int(confusion.diagonal().sum()),
            int(self._top5),
            float(self._loss) / pictures,
            self._classes,
            tuple(tuple(row) for row in confusion.tolist()),
        )
