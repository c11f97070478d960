"""What calibration found out: the grids of all activations, pictures to correct by and pictures to judge by; and the file that keeps it."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcnn.errors import FileFormatError, RequestError
from fastcnn.files import write_text
from fastcnn.graph.ir import CapturedGraph
from fastcnn.limits import MAX_BYTES, beyond, inflate, parse_json
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.edges import find_edges
from fastcnn.quantization.histogram import Histogram, grid_of, scale_of
from fastcnn.quantization.observation import observe
from fastcnn.quantization.request import Int8Request
from fastcnn.quantization.samples import Samples, draw
from fastcnn.quantization.scheme import Grid, Scheme

_FORMAT = 2
_SCHEMES = {"uint8": Scheme(symmetric=False), "int8": Scheme(symmetric=True)}


@dataclass(frozen=True)
class Levels:
    """Pictures as 256 levels, small enough to keep: value = level · scale + offset in float32.

    Attributes:
        levels: [N, …] uint8.
    """

    levels: NDArray[np.uint8]
    scale: float
    offset: float

    @classmethod
    def of(cls, pictures: Tensor) -> Levels:
        """The nearest levels between the smallest and the largest value of `pictures` [N, …]."""
        low, high = (float(bound) for bound in torch.aminmax(pictures))
        scale = float(np.float32((high - low) / 255)) or 1.0
        return cls(((pictures - low) / scale).round().clamp(0, 255).to(torch.uint8).numpy(), scale, float(np.float32(low)))

    def values(self) -> Tensor:
        """[N, …] float32."""
        return torch.from_numpy(self.levels.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = base64.b64encode(zlib.compress(self.levels.tobytes(), 9)).decode("ascii")
        return {"shape": list(self.levels.shape), "scale": self.scale, "offset": self.offset, "data": data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Levels:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for anything else, or for more than `fastcnn.limits` allow."""
        size = math.prod(data["shape"])
        reason = beyond(MAX_BYTES, "the bytes of its pictures are", size)
        if reason is not None:
            raise ValueError(reason)
        levels = np.frombuffer(inflate(base64.b64decode(data["data"]), size), dtype=np.uint8).reshape(data["shape"])
        return cls(levels, float(data["scale"]), float(data["offset"]))


@dataclass(frozen=True)
class Ranges:
    """What one calibration found out.

    Attributes:
        weights_sha256: of the weights that it ran with; ranges of others say nothing.
        grids: by the name of the activation's dtype, the grid of each value by its node's name.
        kept: some of the pictures that were observed, to correct biases by.
        held_out: pictures to judge by, which were not observed.
        source, samples, skipped: what the pictures come from, how many were observed, how many files could not be read.
    """

    weights_sha256: str
    grids: Mapping[str, Mapping[str, Grid]]
    kept: Levels
    held_out: Levels
    source: str
    samples: int
    skipped: int

    def of(self, scheme: Scheme) -> Mapping[str, Grid]:
        """The grids for `scheme`."""
        return self.grids[str(scheme.dtype).removeprefix("torch.")]

    def save(self, path: Path) -> None:
        """Writes a JSON file, whole or not at all. Raises RequestError where it cannot."""
        data = {
            "format": _FORMAT,
            "fastcnn_ranges": {name: {value: [grid.scale, grid.zero_point] for value, grid in grids.items()} for name, grids in self.grids.items()},
            "kept": self.kept.to_dict(),
            "held_out": self.held_out.to_dict(),
            "weights_sha256": self.weights_sha256,
            "source": self.source,
            "samples": self.samples,
            "skipped": self.skipped,
        }
        write_text(path, json.dumps(data))

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Reads what `save` wrote. Raises FileFormatError for anything else, RequestError where there is no such file."""
        try:
            data = parse_json(path.read_bytes())
            if data["format"] != _FORMAT:
                raise FileFormatError(f"{path} has format {data['format']}, this version reads format {_FORMAT}: calibrate again")
            grids = {
                name: {value: Grid(float(scale), int(zero)) for value, (scale, zero) in data["fastcnn_ranges"][name].items()} for name in _SCHEMES
            }
            return cls(
                str(data["weights_sha256"]),
                grids,
                Levels.from_dict(data["kept"]),
                Levels.from_dict(data["held_out"]),
                str(data["source"]),
                int(data["samples"]),
                int(data["skipped"]),
            )
        except OSError as error:
            raise RequestError(f"ranges {path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"{path} holds no ranges of a calibration: {type(error).__name__}: {error}") from error


def find_ranges(
    request: Int8Request, captured: CapturedGraph, preprocessing: Preprocessing | None, weights_sha256: str, say: Callable[[str], None]
) -> Ranges:
    """Those that the request brings, or those of a calibration of `captured`, saved where that was asked for.

    Args:
        preprocessing: from a picture to the input of the graph, where it is known.
        weights_sha256: of the model's own weights.

    Raises:
        RequestError, InputError: the calibration cannot serve, or the ranges were observed with other weights.
    """
    path, name = request.ranges_file, captured.info["name"]
    if path is not None:
        ranges = Ranges.load(path)
        if ranges.weights_sha256 != weights_sha256:
            raise RequestError(f"the ranges in {path} were observed with other weights than those of this {name}: calibrate again")
        return ranges
    shape = [size for size in captured.input_shape[1:] if size is not None]
    ranges = calibrate(captured, draw(request.calibration, shape, preprocessing, request.samples), weights_sha256, say)
    if request.save_ranges is not None:
        ranges.save(request.save_ranges)
    return ranges


def calibrate(captured: CapturedGraph, samples: Samples, weights_sha256: str, say: Callable[[str], None] = lambda stage: None) -> Ranges:
    """Observe `samples` on a graph that the other passes went over. Errors as in `Samples.batches` and `observe`."""
    graph = captured.copy()
    graph.cast_constants(torch.float32)
    edges = find_edges(graph)
    done = 0

    def seen(count: int) -> None:
        nonlocal done
        done += count
        say(f"calibrate: {done} of {samples.chosen} pictures")

    observed = observe(graph, edges.values, samples.batches(), seen)
    histograms = [[Histogram.merged([observed[node.name] for node in group]) for group in groups] for groups in edges.scales()]
    say("ranges of least error")
    grids: dict[str, dict[str, Grid]] = {}
    for name, scheme in _SCHEMES.items():
        found = grids.setdefault(name, {})
        for groups, merged in zip(edges.scales(), histograms, strict=True):
            bounds = [histogram.best_range(scheme) for histogram in merged]
            scale = max(scale_of(low, high, scheme) for low, high in bounds)
            for group, (low, high) in zip(groups, bounds, strict=True):
                found |= {node.name: grid_of(low, high, scheme, scale) for node in group}
    kept, held_out = Levels.of(torch.stack(samples.kept)), Levels.of(torch.stack(samples.held_out))
    return Ranges(weights_sha256, grids, kept, held_out, samples.source, samples.used, samples.skipped)
