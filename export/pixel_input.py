"""Put preprocessing into a file: uint8 [N, H, W, C] pixels in, in standard operators.

The normalisation goes in front of the model before the passes run, so that they can fold it into the first convolution where that is exact. What
turns pixels into numbers stands in front of that. Resizing is a matrix product per axis: out = R_h · x · R_wᵀ, where row i of R holds the weights
of the filter around output position i. It is computed in the file from the size of the picture, or is a constant of a file for pictures of one
size, which parsers read that know no sizes at run time. It is what PyTorch's `interpolate` computes in floating point with antialias; Pillow, and
so `Preprocessing`, rounds to whole levels after each axis.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from fastcnn.errors import RequestError
from fastcnn.export.options import ExportOptions
from fastcnn.export.preprocess import Preprocess
from fastcnn.graph.capture import tracing
from fastcnn.graph.ir import CapturedGraph, aten
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.preprocessing import Preprocessing

RESIZABLE = ("bilinear", "bicubic")


def preprocessing_in(captured: CapturedGraph, options: ExportOptions) -> Preprocessing | None:
    """The preprocessing of a graph that takes [N, C, H, W], at that size; None where none is known.

    Raises:
        RequestError: the one given does not fit the graph, or a file is asked for that does what nobody described.
    """
    known = options.preprocessing
    if known is None and captured.info.get("preprocessing") is not None:
        known = preprocessing_of(captured.info)
    shape, name = captured.input_shape, captured.info["name"]
    if known is not None and len(shape) == 4 and known.channel_count == shape[1]:
        known = known.at_size(int(shape[2] or 0), int(shape[3] or 0))
    elif options.preprocessing is not None:
        raise RequestError(f"preprocessing for {options.preprocessing.channels} pictures does not fit {name}, which takes {list(shape)}")
    else:
        known = None
    if options.preprocess is Preprocess.none:
        return known
    if known is None:
        raise RequestError(f"{name} does not say how a picture becomes its input: give preprocessing=Preprocessing(…)")
    if options.preprocess is Preprocess.resize:
        _check_resize(known, name)
    return known


def _check_resize(preprocessing: Preprocessing, name: str) -> None:
    if preprocessing.resize is None:
        raise RequestError(f"the preprocessing of {name} resizes nothing: preprocess='normalize' is all there is to put into the file")
    aliased = "" if preprocessing.antialias else " without antialias"
    if preprocessing.interpolation not in RESIZABLE or (aliased and preprocessing.interpolation != "bilinear"):
        raise RequestError(f"a file cannot resize by {preprocessing.interpolation}{aliased}: there are bilinear, and bicubic with antialias")
    crop, resize = preprocessing.size, preprocessing.resize
    if any(side < cut for side, cut in zip((resize, resize) if isinstance(resize, int) else resize, crop, strict=True)):
        raise RequestError(f"a file cannot pad: the preprocessing of {name} resizes to {resize} and then cuts out {crop[0]}×{crop[1]}")


class PixelInput(nn.Module):
    """[N, H, W, C] levels 0 to 255 of any dtype → [N, C, height, width]: resized and cropped, normalised, each if asked for.

    Computes in float64 for a float64 input, else in float32: with float16 weights behind it, the pixels themselves are not rounded twice.
    Returns a floating-point input's own dtype, or `dtype`.

    Args:
        picture_size: (height, width) of the only pictures that it takes, whose filters are then constants; None for any.
        cast_first: pixels become floating point before they are transposed, which moves four times the bytes.
    """

    scale: Tensor
    shift: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        resize: bool,
        normalize: bool,
        dtype: torch.dtype = torch.float32,
        picture_size: tuple[int, int] | None = None,
        cast_first: bool = False,
    ) -> None:
        super().__init__()
        self.picture_size, self.cast_first = picture_size, cast_first
        self.preprocessing, self.resize, self.normalize, self.dtype = preprocessing, resize, normalize, dtype
        scale, shift = scale_and_shift(preprocessing)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        if picture_size is not None:
            rows, columns = filters(torch.empty(1, 1, *picture_size, dtype=torch.float64), preprocessing)
            # [height, H] and [W, width], rounded once: a parser that reads constants alone finds no cast of one.
            self.register_buffer("rows", rows.float())
            self.register_buffer("columns", columns.transpose(0, 1).float().contiguous())

    def sizes_to_check(self) -> list[tuple[int, int]]:
        """(height, width) of pictures that show what a file does with them: where it resizes, one to shrink lying and one to enlarge standing."""
        if not self.resize:
            return [self.preprocessing.size]
        if self.picture_size is not None:
            return [self.picture_size]
        resize = self.preprocessing.resize
        height, width = (resize, resize) if isinstance(resize, int) else resize or self.preprocessing.size
        return [(height * 5 // 4 + 1, width * 3 // 2 + 1), (height * 4 // 5 + 1, width * 2 // 3 + 1)]

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [N, H, W, C]; gives [N, C, height, width]."""
        work = torch.float64 if pixels.dtype == torch.float64 else torch.float32
        # In the memory order that the model was captured with, since one that calls view() depends on it.
        values = (pixels.to(work).permute(0, 3, 1, 2) if self.cast_first else pixels.permute(0, 3, 1, 2).to(work)).contiguous()
        if self.resize:
            values = self._resized(values)
        if self.normalize:
            values = values * self.scale.to(work) + self.shift.to(work)
        return values.to(pixels.dtype if pixels.is_floating_point() else self.dtype)

    def _resized(self, values: Tensor) -> Tensor:
        if self.picture_size is None:
            return resample(values, self.preprocessing)
        return torch.matmul(self.rows.to(values.dtype), torch.matmul(values, self.columns.to(values.dtype)))


def scale_and_shift(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """[1, C, 1, 1] float64 each: normalised = level · scale + shift."""
    low, high = preprocessing.value_range
    mean, std = (torch.tensor(stats, dtype=torch.float64).view(1, -1, 1, 1) for stats in (preprocessing.mean, preprocessing.std))
    return (high - low) / 255 / std, (low - mean) / std


def resample(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    """[N, C, H, W] float → [N, C, height, width], resized and cropped as the description says, without rounding to levels."""
    rows, columns = filters(values, preprocessing)
    return torch.matmul(rows, torch.matmul(values, columns.transpose(0, 1)))


def filters(values: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """For [N, C, H, W]: the weights of the rows [height, H] and of the columns [width, W], in the dtype of `values`, which are not looked at."""
    height, width = (torch.scalar_tensor(side, dtype=torch.int64) for side in values.shape[2:])
    resize = preprocessing.resize
    if isinstance(resize, int):
        shorter = torch.minimum(height, width)
        resized_height, resized_width = (torch.div(side * resize, shorter, rounding_mode="floor") for side in (height, width))
    else:
        assert resize is not None
        resized_height, resized_width = (torch.scalar_tensor(side, dtype=torch.int64) for side in resize)
    rows = _filters(values, 2, height, resized_height, preprocessing.size[0], preprocessing)
    columns = _filters(values, 3, width, resized_width, preprocessing.size[1], preprocessing)
    return rows, columns


def _filters(values: Tensor, axis: int, length: Tensor, resized: Tensor, crop: int, preprocessing: Preprocessing) -> Tensor:
    """[crop, length]: row i holds the weights of the positions of `values` along `axis` for position i of the crop.

    Position k lies at k + ½ and output j at (j + ½) · length / resized; their distance is taken in whole numbers, which do not round.
    """
    excess = resized - crop
    half = torch.div(excess, 2, rounding_mode="floor")
    # The crop starts at excess / 2, rounded half to even as Python rounds.
    start = half + (excess - 2 * half) * (half - 2 * torch.div(half, 2, rounding_mode="floor"))
    outputs = torch.arange(crop, dtype=torch.int64).unsqueeze(1) + start
    inputs = torch.arange(values.shape[axis], dtype=torch.int64).unsqueeze(0)
    distance = (2 * inputs + 1) * resized - (2 * outputs + 1) * length
    width = torch.maximum(length, resized) if preprocessing.antialias else resized
    # Cast before abs: OpenCV has no Abs of whole numbers.
    away = distance.to(values.dtype).abs() / (2 * width).to(values.dtype)
    weights = torch.relu(1 - away) if preprocessing.interpolation == "bilinear" else _cubic(away)
    return weights / weights.sum(dim=1, keepdim=True)


def _cubic(away: Tensor) -> Tensor:
    """Keys' cubic convolution kernel (Keys 1981) with a = −½, as Pillow has it; 0 from a distance of 2 on."""
    near = (1.5 * away - 2.5) * away * away + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return torch.where(away < 1, near, torch.where(away < 2, far, torch.zeros_like(away)))


def normalize_in_graph(captured: CapturedGraph, preprocessing: Preprocessing) -> CapturedGraph:
    """A copy that takes [N, C, H, W] levels in place of normalised values: a multiplication and an addition, for the passes to fold."""
    captured = captured.copy()
    source = captured.input_node
    readers = list(source.users)
    first, value = source.next, source
    for name, target, constant in zip(
        ("preprocessing.scale", "preprocessing.shift"), (aten.mul.Tensor, aten.add.Tensor), scale_and_shift(preprocessing), strict=True
    ):
        stored = captured.add_constant(name, constant.to(captured.input_dtype), before=first)
        value = captured.call(target, (value, stored), before=first, like=source)
    for reader in readers:
        reader.replace_input_with(source, value)
    captured.tidy()
    return captured


def take_pixels(captured: CapturedGraph, front: PixelInput, batch_size: int | None) -> CapturedGraph:
    """A copy that takes uint8 [N, H, W, C] and starts with `front`; H and W are free where it resizes pictures of any size."""
    captured = captured.copy()
    preprocessing, free_sides = front.preprocessing, front.resize and front.picture_size is None
    # Two sizes that differ from each other and from what comes out, so that none is taken for another.
    height, width = front.picture_size or (side + extra for side, extra in zip(preprocessing.size, (3, 5) if free_sides else (0, 0), strict=True))
    example = torch.zeros((batch_size or 2, height, width, preprocessing.channel_count), dtype=torch.uint8)
    free = {0: torch.export.Dim("batch")} if batch_size is None else {}
    if free_sides:
        free |= {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    with torch.no_grad(), tracing():
        program = torch.export.export(front.eval(), (example,), dynamic_shapes=(free,), strict=False)
    _prepend(captured, program.module())
    shape = (None, None, None, preprocessing.channel_count) if free_sides else (None, *example.shape[1:])
    captured = replace(captured, input_shape=shape, input_dtype=torch.uint8)
    captured.input_node.meta.update(shape=shape, dtype=torch.uint8)
    captured.tidy()
    return captured


def _prepend(captured: CapturedGraph, front: fx.GraphModule) -> None:
    """Put the calls of `front` in front of the graph, which then reads their result in place of its input."""
    old = captured.input_node
    copies: dict[fx.Node, fx.Node] = {}
    result: fx.Node | None = None
    for node in front.graph.nodes:
        if node.op == "call_module":  # the guards that torch.export adds; the batch is checked by the file itself
            continue
        if node.op == "output":
            (result,) = node.args[0] if isinstance(node.args[0], (list, tuple)) else (node.args[0],)
            continue
        if node.op == "get_attr":
            tensor = getattr(front, str(node.target))
            copies[node] = captured.add_constant(f"preprocessing.{node.target}", tensor.detach().clone(), before=old)
            continue
        with captured.graph.inserting_before(old):
            copy = captured.graph.node_copy(node, lambda source: copies[source])
        value = node.meta.get("val")
        copy.meta = {"path": "preprocessing", "dtype": getattr(value, "dtype", None), "shape": _shape(value), "folded": ()}
        copies[node] = copy
    assert result is not None
    captured.replace(old, copies[result])
    # A placeholder comes first.
    source = next(copy for node, copy in copies.items() if node.op == "placeholder")
    captured.graph._root.append(source)


def _shape(value: object) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape) if isinstance(value, Tensor) else ()
