"""The curves of a run, epoch by epoch: as CSV and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastcnn.caches import import_matplotlib
from fastcnn.files import replacing


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: from 1.
        learning_rate: of its last step.
        train_loss, train_accuracy: of the main output, averaged while the weights were still changing.
        aux_loss: what the auxiliary heads added to the loss, already weighted; 0 without them.
        validation_loss, validation_accuracy: at its end.
        seconds: wall clock, validation included; what an interrupted part took is not counted.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    aux_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float

    @property
    def quality(self) -> tuple[float, float]:
        """Of two epochs the better one has the higher quality: accuracy, then loss, on the validation pictures."""
        return self.validation_accuracy, -self.validation_loss

    def results(self) -> dict[str, Any]:
        """Everything that depends on the recipe and the data alone."""
        return {name: value for name, value in asdict(self).items() if name != "seconds"}


def write_csv(history: Sequence[EpochRecord], path: Path) -> None:
    """One row per epoch, under the names of the attributes."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(EpochRecord)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)


def plot_curves(history: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Loss and accuracy of training and validation over the epochs, as PNG."""
    import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [record.epoch for record in history]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, style in (("train", "o--"), ("validation", "o-")):
            axes.plot(epochs, [getattr(record, f"{part}_{quantity}") for record in history], style, markersize=3, label=part)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(title)
    with replacing(path) as temporary:
        # Without the version of matplotlib: the same curves give the same bytes.
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})
