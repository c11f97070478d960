"""The plots of a benchmark's page, as SVG that follows the colours of the page it stands in.

matplotlib draws with stand-in colours, which become CSS variables afterwards; text stays text, so that it can be read aloud, searched and
checked. All plots are drawn `WIDTH` units wide, which is about a phone's width in pixels: they are enlarged elsewhere, never shrunk to
illegible text. The same figures give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastcnn.bench.views import units
from fastcnn.caches import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 356
_ROW = 20
_FONT = 10.0
_SMALL = 9.5
_LONGEST_NAME = 26
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"

# Drawn with these, which nothing else has; each becomes var(--NAME).
_INK, _MUTED, _GRID, _SURFACE = "#010203", "#010204", "#010205", "#010206"
_OURS, _PEER, _BAD, _MEMORY, _COMPUTE = "#010207", "#010208", "#010209", "#01020a", "#01020b"
_PARTS = ("#01020c", "#01020d", "#01020e")
COLOURS = dict(
    zip(
        (_INK, _MUTED, _GRID, _SURFACE, _OURS, _PEER, _BAD, _MEMORY, _COMPUTE, *_PARTS),
        ("ink", "muted", "grid", "surface", "ours", "peer", "bad", "memory", "compute", "part-1", "part-2", "part-3"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Bar:
    """One row of a plot.

    Attributes:
        name: of the row.
        value: its length or place.
        path: where the value stands in the result file.
        low, high: ends of a whisker around it.
        emphasis: it is one of fastcnn's own.
        bad: it failed.
        samples: all measured values.
        parts: what the value is made of, in the order of `Legend`.
    """

    name: str
    value: float
    path: str
    low: float | None = None
    high: float | None = None
    emphasis: bool = False
    bad: bool = False
    samples: Sequence[float] = ()
    parts: Sequence[float] = ()
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A layer in a roofline plot: operations, bytes and seconds of one run; `bound` is memory or compute."""

    flops: float
    moved: float
    seconds: float | None
    bound: str


@dataclass(frozen=True)
class Line:
    """Throughput over batch sizes."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    emphasis: bool


def bars(rows: Sequence[Bar], unit: units.Unit, axis: str, title: str, *, key: str) -> str:
    """Lengths from zero, the value written at the end, whiskers where there are any."""
    with _figure(_height(rows) + 34, key, title) as (figure, ax, done):
        furthest = max(max(row.value, row.high or 0.0) for row in rows)
        for y, row in enumerate(rows):
            ax.barh(y, row.value, height=0.62, color=_colour(row), linewidth=0)
            end = row.value
            if row.low is not None and row.high is not None:
                ax.plot([row.low, row.high], [y, y], color=_INK, linewidth=1.2, solid_capstyle="butt")
                end = max(end, row.high)
            _value(ax, end, y, row, unit(row.value) + row.note)
        ax.set_xlim(0, furthest * 1.3)
        _rows(ax, rows)
        _axis(ax, axis)
        done(figure)
    return done.svg


def stacked(rows: Sequence[Bar], legend: Sequence[str], unit: units.Unit, axis: str, title: str, *, key: str) -> str:
    """As `bars`, each made of parts that a legend names."""
    with _figure(_height(rows) + 58, key, title) as (figure, ax, done):
        for index, name in enumerate(legend):
            starts = [sum(row.parts[:index]) for row in rows]
            widths = [row.parts[index] if index < len(row.parts) else 0.0 for row in rows]
            ax.barh(range(len(rows)), widths, left=starts, height=0.62, color=_PARTS[index % len(_PARTS)], linewidth=0, label=name)
        for y, row in enumerate(rows):
            if not row.parts:
                ax.barh(y, row.value, height=0.62, color=_PARTS[0], linewidth=0)
            _value(ax, row.value, y, row, unit(row.value))
        ax.set_xlim(0, max(row.value for row in rows) * 1.3)
        _rows(ax, rows)
        _axis(ax, axis)
        figure.legend(loc="outside upper left", ncols=len(legend), frameon=False, fontsize=_SMALL, labelcolor=_INK, handlelength=1, columnspacing=1.2)
        done(figure)
    return done.svg


def strips(rows: Sequence[Bar], axis: str, title: str, *, key: str) -> str:
    """Every sample as a stroke, the tenth to the ninetieth percentile (`low`, `high`) as a band, the median (`value`) as a thick stroke."""
    with _figure(_height(rows) + 34, key, title) as (figure, ax, done):
        for y, row in enumerate(rows):
            colour = _colour(row)
            if row.low is not None and row.high is not None:
                ax.barh(y, row.high - row.low, left=row.low, height=0.62, color=colour, alpha=0.25, linewidth=0)
            x = [value for sample in row.samples for value in (sample, sample, math.nan)]
            ax.plot(x, [y - 0.2, y + 0.2, math.nan] * len(row.samples), color=colour, linewidth=0.8, solid_capstyle="butt")
            ax.plot([row.value, row.value], [y - 0.38, y + 0.38], color=_INK, linewidth=2, solid_capstyle="butt")
        low = min(min([row.value, *row.samples]) for row in rows)
        high = max(max([row.value, *row.samples]) for row in rows)
        if high > 8 * low:
            _logarithmic(ax, "x", low / 1.15, high * 1.15)
        else:
            ax.set_xlim(max(0, low - 0.06 * (high - low)), high + 0.06 * (high - low))
        _rows(ax, rows)
        _axis(ax, axis)
        done(figure)
    return done.svg


def errors(rows: Sequence[Bar], tolerance: float, axis: str, title: str, *, key: str) -> str:
    """A dot a row on a logarithmic axis, and the tolerance as a line that they must stay left of."""
    with _figure(_height(rows) + 50, key, title) as (figure, ax, done):
        known = [row.value for row in rows if row.value > 0]
        left = min([*known, tolerance / 10]) / 4
        right = max([*known, tolerance]) * 4
        ax.axvspan(tolerance, right, color=_BAD, alpha=0.1, linewidth=0)
        ax.axvline(tolerance, color=_BAD, linewidth=1.2)
        side = "right" if right / tolerance < 1e2 else "left"
        ax.text(tolerance, -0.75, f" tolerance {units.error(tolerance)} ", color=_BAD, fontsize=_SMALL, ha=side)
        for y, row in enumerate(rows):
            x = max(row.value, left)
            ax.plot([left, x], [y, y], color=_GRID, linewidth=1.2, zorder=1)
            ax.plot([x], [y], marker="o", markersize=6, color=_colour(row), linestyle="none", zorder=3)
            label = ax.text(1.02, y, units.error(row.value), transform=ax.get_yaxis_transform(), va="center", fontsize=_SMALL, color=_INK)
            label.set_gid(f"path:{row.path}")
        _logarithmic(ax, "x", left, right)
        _rows(ax, rows, head=0.6)
        _axis(ax, axis)
        done(figure)
    return done.svg


def lines(rows: Sequence[Line], axis: str, title: str, *, key: str) -> str:
    """Throughput over batch sizes: fastcnn's rows in colour, the others in grey; the name stands at the end of each line."""
    import_matplotlib()
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    with _figure(300, key, title) as (figure, ax, done):
        for row in sorted(rows, key=lambda row: row.emphasis):
            colour = _OURS if row.emphasis else _PEER
            ax.fill_between(row.x, row.low, row.high, color=colour, alpha=0.12, linewidth=0)
            ax.plot(row.x, row.y, color=colour, linewidth=2 if row.emphasis else 1.2, marker="o", markersize=4)
        batches = sorted({x for row in rows for x in row.x})
        ax.set_xscale("log", base=2)
        ax.set_xlim(batches[0] / 1.15, batches[-1] * (batches[-1] / batches[0]) ** 0.6 * 1.3)
        ax.set_ylim(0, max(max(row.high) for row in rows) * 1.05)
        ax.xaxis.set_major_locator(FixedLocator(batches))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.count(value)))
        span = ax.get_ylim()[1]
        ends = sorted(rows, key=lambda row: row.y[-1])
        for row, y in zip(ends, _apart([row.y[-1] for row in ends], span * 0.052, span), strict=True):
            colour, weight = (_OURS, "bold") if row.emphasis else (_MUTED, "normal")
            ax.annotate(
                row.name,
                (row.x[-1], row.y[-1]),
                (batches[-1] * 1.25, y),
                color=colour,
                fontsize=_SMALL,
                fontweight=weight,
                va="center",
                arrowprops={"arrowstyle": "-", "color": _GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
            )
        ax.grid(axis="y", color=_GRID, linewidth=0.8)
        ax.tick_params(length=0, labelsize=_SMALL)
        ax.set_ylabel(axis, fontsize=_SMALL, color=_MUTED)
        ax.set_xlabel("batch size", fontsize=_SMALL, color=_MUTED)
        done(figure)
    return done.svg


def roofline(points: Sequence[Point], bytes_per_second: float, flops_per_second: float, total: Point | None, title: str, *, key: str) -> str:
    """Williams, Waterman & Patterson, "Roofline" (2009): operations per byte against operations per second, on logarithmic axes.

    A point without seconds stands on the roof, hollow. The area of a point grows with its time.
    """
    drawn = [point for point in (*points, *([total] if total else [])) if point.flops > 0 and point.moved > 0]
    roof = lambda intensity: min(intensity * bytes_per_second, flops_per_second)  # noqa: E731
    place = lambda point: (point.flops / point.moved, point.flops / point.seconds if point.seconds else roof(point.flops / point.moved))  # noqa: E731
    with _figure(330, key, title) as (figure, ax, done):
        ridge = flops_per_second / bytes_per_second
        xs, ys = zip(*map(place, drawn), (ridge, flops_per_second), strict=True) if drawn else ((ridge,), (flops_per_second,))
        left, right = min(xs) / 2, max(*xs, ridge * 4) * 2
        _logarithmic(ax, "x", left, right)
        _logarithmic(ax, "y", min(ys) / 2, max(*ys, flops_per_second) * 2.5)
        ax.plot([left, ridge, right], [left * bytes_per_second, flops_per_second, flops_per_second], color=_INK, linewidth=1.5)
        slowest = max((point.seconds or 0.0 for point in points), default=0.0)
        for bound, colour, marker in (("memory", _MEMORY, "o"), ("compute", _COMPUTE, "s")):
            for point in drawn:
                if point is total or point.bound != bound:
                    continue
                size = 14 + 90 * (point.seconds / slowest if point.seconds and slowest else 0.1)
                face = colour if point.seconds else "none"
                ax.scatter(*place(point), s=size, marker=marker, facecolor=face, edgecolor=colour, alpha=0.65, linewidth=0 if point.seconds else 1.2)
            ax.scatter([], [], s=40, marker=marker, color=colour, label=f"{bound}-bound layer")
        if total is not None and total in drawn:
            ax.scatter(*place(total), s=90, marker="D", facecolor=_SURFACE, edgecolor=_INK, linewidth=1.8, zorder=4, label="whole model")
        ax.text(right, flops_per_second * 1.12, f"GEMM {units.rate(flops_per_second)} ", color=_INK, fontsize=_SMALL, ha="right", va="bottom")
        middle = math.sqrt(left * ridge)
        ax.annotate(  # above the roof on the left there is never a point
            f" copy {units.bandwidth(bytes_per_second)}",
            (middle, middle * bytes_per_second),
            (left, flops_per_second * 1.12),
            color=_INK,
            fontsize=_SMALL,
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": _MUTED, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 2, "relpos": (0.2, 0)},
        )
        ax.grid(color=_GRID, linewidth=0.6)
        ax.tick_params(length=0, labelsize=_SMALL)
        ax.set_xlabel("FLOP per byte", fontsize=_SMALL, color=_MUTED)
        ax.set_ylabel("GFLOP/s", fontsize=_SMALL, color=_MUTED)
        ax.yaxis.set_major_formatter(lambda value, _: units.digits(value / 1e9, 1))
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=_SMALL, labelcolor=_INK, handletextpad=0.2, columnspacing=1.0)
        done(figure)
    return done.svg


def coloured(svg: str, palette: Mapping[str, str]) -> str:
    """A plot with its colours put in, for where no style sheet reaches it."""
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: palette[match[1]], svg)


class _Done:
    """Turns a finished figure into SVG."""

    def __init__(self, key: str, title: str) -> None:
        self.key, self.title, self.svg = key, title, ""

    def __call__(self, figure: Figure) -> None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        self.svg = _tidy(buffer.getvalue(), self.key, self.title)


@contextmanager
def _figure(height: float, key: str, title: str) -> Iterator[tuple[Figure, Axes, _Done]]:
    import_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": key,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the space for a text is the same on every machine
        "font.size": _FONT,
        "text.color": _INK,
        "axes.edgecolor": _GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "axes.formatter.useoffset": False,
    }
    with matplotlib.style.context(["default", style]):
        # The strip on the right is for the half of a last label that juts out.
        layout = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=2 / 72, rect=(0, 0, 0.98, 1))
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout=layout)
        yield figure, figure.add_subplot(), _Done(key, title)


def _height(rows: Sequence[Bar]) -> float:
    return len(rows) * _ROW * (1.5 if any(len(_lines(row.name)) > 1 for row in rows) else 1.0)


def _colour(row: Bar) -> str:
    return _BAD if row.bad else _OURS if row.emphasis else _PEER


def _value(ax: Axes, x: float, y: float, row: Bar, text: str) -> None:
    label = ax.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=_SMALL, color=_INK)
    label.set_gid(f"path:{row.path}")


def _rows(ax: Axes, rows: Sequence[Bar], head: float = 0.0) -> None:
    """The first row on top, names on the left, ours in bold."""
    ax.set_ylim(len(rows) - 0.45, -0.55 - head)
    ax.set_yticks(range(len(rows)), ["\n".join(_lines(row.name)) for row in rows], fontsize=_SMALL)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_color(_BAD if row.bad else _INK)
        label.set_fontweight("bold" if row.emphasis else "normal")
    ax.spines["left"].set_visible(False)


def _lines(name: str) -> list[str]:
    """A name in up to two lines that fit beside a plot, broken at a space or an underscore; the table below has the end of a longer one."""
    lines = [""]
    for piece in re.split(r"(?<=[\s_])", name):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > _LONGEST_NAME:
            lines.append("")
        lines[-1] += piece
    cut = [line.rstrip() if len(line.rstrip()) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…" for line in lines]
    if len(cut) <= 2:
        return cut
    room = cut[1][: _LONGEST_NAME - 2]
    return [cut[0], f"{cut[1] if room == cut[1] else room.rpartition(' ')[0] or room} …"]


def _axis(ax: Axes, name: str) -> None:
    ax.set_xlabel(name, fontsize=_SMALL, color=_MUTED)
    ax.tick_params(length=0)
    ax.tick_params(axis="x", labelsize=_SMALL)
    ax.grid(axis="x", color=_GRID, linewidth=0.8)


def _logarithmic(ax: Axes, which: str, low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    if which == "x":
        ax.set_xscale("log")
        ax.set_xlim(low, high)
    else:
        ax.set_yscale("log")
        ax.set_ylim(low, high)
    axis = ax.xaxis if which == "x" else ax.yaxis
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0), numticks=5))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    # The usual 10⁻⁶ is drawn as several pieces of text, which nobody could search for.
    axis.set_major_formatter(lambda value, _: f"1e{math.log10(value):.0f}" if value < 1e-3 else units.digits(value, 1))


def _apart(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending places moved so that neighbours are at least `gap` apart, none above `top` if there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    over = moved[-1] - top if moved else 0.0
    if over > 0:
        moved[-1] = top
        for index in range(len(moved) - 2, -1, -1):
            moved[index] = min(moved[index], moved[index + 1] - gap)
    return moved


def _tidy(svg: bytes, key: str, title: str) -> str:
    """SVG that can stand in a page: colours as variables, ids of its own, a title for those who cannot see it, and no size in points."""
    for prefix, space in (("", _SVG), ("xlink", _XLINK)):
        ET.register_namespace(prefix, space)
    root = ET.fromstring(svg)
    _prune(root)
    for element in root.iter():
        _tidy_element(element, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{key}-title",
        "stroke-linejoin": "round",
        "font-family": "system-ui, sans-serif",
        "class": "plot",
    }
    label = ET.Element(f"{{{_SVG}}}title", {"id": f"{key}-title"})
    label.text = title
    root.insert(0, label)
    text = ET.tostring(root, encoding="unicode")
    return re.sub("|".join(COLOURS), lambda match: f"var(--{COLOURS[match[0]]})", text) + "\n"


def _prune(parent: ET.Element) -> None:
    """Takes out what draws nothing, and matplotlib's style rule, which would hold for every element of the page."""
    if parent.text is not None and not parent.text.strip():
        parent.text = None
    for child in list(parent):
        _prune(child)
        child.tail = None
        empty = child.tag in (f"{{{_SVG}}}g", f"{{{_SVG}}}defs") and not len(child)
        invisible = child.get("style") == "fill: none" and child.tag == f"{{{_SVG}}}path"
        if empty or invisible or child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
            parent.remove(child)


def _tidy_element(element: ET.Element, key: str) -> None:
    identity = element.attrib.pop("id", None)
    if identity is not None and identity.startswith("path:"):
        element.set("data-path", identity.removeprefix("path:"))
    elif identity is not None and element.tag != f"{{{_SVG}}}g":  # those of groups name axes and lines: nothing refers to them
        element.set("id", f"{key}-{identity}")
    for name, value in element.attrib.items():
        if name == f"{{{_XLINK}}}href":
            element.set(name, value.replace("#", f"#{key}-", 1))
        elif "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{key}-"))
        elif name in ("d", "x", "y", "transform"):
            element.set(name, re.sub(r"-?\d+\.\d+", _hundredths, " ".join(value.split())))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    style = element.get("style", "")
    if "font" in style:  # one name of a family for the whole plot, at its root
        style = re.sub(r"font-family: [^;]+; ?", "", style)
        element.set("style", re.sub(r"font: ((?:\w+ )*?)([\d.]+px) [^;]+", _font, style))


def _font(match: re.Match[str]) -> str:
    weight = match[1].strip()
    return f"font-size: {match[2]}" + (f"; font-weight: {weight}" if weight else "")


def _hundredths(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
