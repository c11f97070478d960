"""The confusion matrix, and the pictures on which two candidates disagree, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcnn.caches import import_matplotlib
from fastcnn.evaluation.metrics import Metrics
from fastcnn.files import replacing

# Above these numbers of classes a cell has no room for a count, and an axis none for names.
_MOST_COUNTS, _MOST_NAMES = 20, 60
_COLUMNS = 8


@dataclass(frozen=True)
class Disagreement:
    """A picture that two candidates take for different classes.

    Attributes:
        where: what a person finds it by.
        label, first, second: names of the true class and of both answers.
        pixels: (H, W) or (H, W, 3) uint8, of those that are to be drawn.
    """

    where: str
    label: str
    first: str
    second: str
    pixels: NDArray[np.uint8] | None = None


def plot_confusion(metrics: Metrics, path: Path, title: str) -> None:
    """Rows are true classes, columns answers; the colour is the share of the row, so that rare classes are seen as well."""
    counts = np.array(metrics.confusion)
    classes = len(counts)
    side = min(4.5 + 0.32 * classes, 24)
    figure = _figure(side, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the class", fraction=0.046)
    axes.set(xlabel="answer", ylabel="class", title=title)
    if classes <= _MOST_NAMES:
        names = [name[:24] for name in metrics.classes]
        longest = max(map(len, names))
        axes.set_xticks(range(classes), names, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(classes), names)
    if classes <= _MOST_COUNTS:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    _save(figure, path)


def plot_disagreements(disagreements: Sequence[Disagreement], path: Path, title: str) -> None:
    """A sheet of pictures, each under its class and the two answers; an empty sheet says that there are none."""
    rows = max(1, -(-len(disagreements) // _COLUMNS))
    figure = _figure(_COLUMNS * 1.5, rows * 1.9 + 0.6)
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, shown in zip(cells, disagreements, strict=False):
        if shown.pixels is not None:
            axes.imshow(shown.pixels, cmap="gray" if shown.pixels.ndim == 2 else None, vmin=0, vmax=255)
        axes.set_title(f"{Path(shown.where).name[:22]}\n{shown.label[:22]}: {shown.first[:10]} | {shown.second[:10]}", fontsize=7)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        # Without the version of matplotlib: the same figures give the same bytes.
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})
