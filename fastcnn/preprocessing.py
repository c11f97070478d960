"""How a picture becomes a model's input, as data: one description that training, evaluation, prediction and exported files share.

The order is that of torchvision's classification presets, and the result is theirs bit for bit: decode, resize, crop in the middle, scale, normalise.
Importing this module imports neither torch nor Pillow: the table of models is made with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from fastcnn.errors import InputError, RequestError
from fastcnn.limits import MAX_PIXELS, beyond, limit
from fastcnn.pictures import crop_middle, pixels_of, resize, to_mode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

Channels = Literal["RGB", "BGR", "L"]
Stats = tuple[float, ...]

CHANNELS: tuple[Channels, ...] = ("RGB", "BGR", "L")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
# What PyTorch can do without antialiasing; Pillow always filters.
_ALIASED_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")

# Normalised values may leave their range by this share of it: float16 and another order of operations round.
_SLACK = 0.01


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to a model's input.

    Attributes:
        channels: "RGB", "BGR" or "L" (grey, ITU-R 601 luma); every picture is converted to it.
        resize: the length of the shorter side, the aspect ratio kept; or exactly (height, width); None leaves the size.
        crop: (height, width) cut from the middle after that; a side that is too short is padded with zeros. None crops nothing.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        antialias: low-pass filter when shrinking. True is what Pillow does, and what torchvision's weights were evaluated with.
        value_range: what the levels 0 and 255 become before the normalisation.
        mean, std: per channel: (value − mean) / std.

    The size of what comes out is fixed: there is a crop, or an exact resize. Raises RequestError for anything that is not such a description.
    """

    channels: Channels = "RGB"
    resize: int | tuple[int, int] | None = 256
    crop: tuple[int, int] | None = (224, 224)
    interpolation: str = "bilinear"
    antialias: bool = True
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: Stats = (0.0, 0.0, 0.0)
    std: Stats = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the class is frozen; lists, as JSON gives them, become tuples
        if self.channels not in CHANNELS:
            raise RequestError(f"preprocessing: channels is {' or '.join(map(repr, CHANNELS))}, not {self.channels!r}")
        if self.resize is not None:
            set_(self, "resize", _side(self.resize) if isinstance(self.resize, int) else _size("resize", self.resize))
        if self.crop is not None:
            set_(self, "crop", _size("crop", self.crop))
        if self.crop is None and not isinstance(self.resize, tuple):
            raise RequestError("preprocessing: give a crop, or resize as (height, width): otherwise every picture has another size")
        if self.interpolation not in INTERPOLATIONS:
            raise RequestError(f"preprocessing: interpolation is one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}")
        if not isinstance(self.antialias, bool):
            raise RequestError(f"preprocessing: antialias is true or false, not {self.antialias!r}")
        if not self.antialias and self.interpolation not in _ALIASED_INTERPOLATIONS:
            raise RequestError(
                f"preprocessing: {self.interpolation} always filters; without antialias there are {', '.join(_ALIASED_INTERPOLATIONS)}"
            )
        low, high = _numbers("value_range", self.value_range, 2)
        if low >= high:
            raise RequestError(f"preprocessing: value_range is (low, high) with low below high, not ({low:g}, {high:g})")
        set_(self, "value_range", (low, high))
        for name in ("mean", "std"):
            set_(self, name, _numbers(name, getattr(self, name), self.channel_count))
        if min(self.std) <= 0:
            raise RequestError(f"preprocessing: std must be above 0 in every channel; it is {self.std}")

    # -- as data -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON's own types, in the order of the attributes; `from_dict` reads it again."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Preprocessing:
        """The reverse of `to_dict`. Raises RequestError for anything else: an attribute must not be missing, and none is guessed."""
        if not isinstance(data, Mapping):
            raise RequestError(f"preprocessing: a JSON object was expected, not {type(data).__name__}")
        names = [field.name for field in fields(cls)]
        missing, unknown = [name for name in names if name not in data], sorted(str(name) for name in data if name not in names)
        if missing or unknown:
            faults = [f"lacks {', '.join(missing)}"] if missing else []
            faults += [f"has unknown {', '.join(unknown)}"] if unknown else []
            raise RequestError(f"preprocessing: the description {' and '.join(faults)}; it has {', '.join(names)}")
        return cls(**data)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocessing:
        """What `torchvision.transforms._presets.ImageClassification` does; `weights.transforms()` of a weights enum makes one."""
        return cls(
            "RGB" if len(preset.mean) == 3 else "L",
            _short_or_exact(preset.resize_size),
            tuple(preset.crop_size * 2 if len(preset.crop_size) == 1 else preset.crop_size),
            preset.interpolation.value,
            preset.antialias is not False,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )

    def to_json(self) -> str:
        """One line, the same for equal descriptions."""
        return json.dumps(self.to_dict())

    def summary(self) -> str:
        """One line for a person."""
        height, width = self.size
        exact = isinstance(self.resize, tuple)
        parts = [
            self.channels,
            None if self.resize is None else f"resized to {_by(self.resize) if exact else f'{self.resize} on the short side'} ({self._how})",
            None if self.crop is None else f"cropped to {height}×{width}",
            "scaled to [{:g}, {:g}]".format(*self.value_range),
            f"mean {_list(self.mean)}, std {_list(self.std)}",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def _how(self) -> str:
        return self.interpolation + ("" if self.antialias or self.interpolation == "nearest" else " without antialias")

    # -- what comes out ------------------------------------------------------------------------------------------------

    @property
    def channel_count(self) -> int:
        return 1 if self.channels == "L" else 3

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        size = self.crop if self.crop is not None else self.resize
        assert isinstance(size, tuple)
        return size

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what comes out."""
        return (self.channel_count, *self.size)

    def bounds(self) -> tuple[tuple[float, float], ...]:
        """(smallest, largest) normalised value of each channel."""
        low, high = self.value_range
        return tuple(((low - mean) / std, (high - mean) / std) for mean, std in zip(self.mean, self.std, strict=True))

    def at_size(self, height: int, width: int) -> Preprocessing:
        """The same for another output size: the resize keeps its proportion to the crop (256 for 224 becomes 293 for 256)."""
        if (height, width) == self.size:
            return self
        if self.crop is None:
            return replace(self, resize=(height, width))
        resize: int | tuple[int, int] | None = self.resize
        if isinstance(resize, tuple):
            resize = (max(1, round(resize[0] * height / self.crop[0])), max(1, round(resize[1] * width / self.crop[1])))
        elif resize is not None:
            resize = max(1, round(resize * max(height, width) / max(self.crop)))
        return replace(self, resize=resize, crop=(height, width))

    # -- pictures ------------------------------------------------------------------------------------------------------

    def __call__(self, image: Image) -> Tensor:
        """A picture → [C, H, W] float32. `normalize(pixels(image))`.

        Raises:
            InputError: a picture whose values have no known range, or one so thin that resizing it would fill the memory.
        """
        return self.normalize(self.pixels(image))

    def pixels(self, image: Image) -> Tensor:
        """`levels` as a tensor."""
        import torch

        return torch.from_numpy(self.levels(image))

    def levels(self, image: Image) -> NDArray[np.uint8]:
        """A picture of any mode → [C, H, W] uint8: upright as EXIF says, converted, resized, cropped; not yet scaled. Errors as in `__call__`.

        PyTorch is imported only to resize without antialias, which Pillow cannot do.
        """
        import numpy as np

        image = to_mode(image, "L" if self.channels == "L" else "RGB")
        if self.resize is not None:
            _check_growth(image, self.resize)
            if not self.antialias:
                pixels = _resize_aliased(image, self.resize, self.interpolation)
            else:
                pixels = pixels_of(resize(image, self.resize, self.interpolation))
        else:
            pixels = pixels_of(image)
        if self.crop is not None:
            reason = beyond(MAX_PIXELS, f"a crop to {_by(self.crop)} has pixels:", math.prod(self.crop))
            if reason is not None:
                raise InputError(reason)
            pixels = crop_middle(pixels, self.crop)
        pixels = pixels[..., ::-1] if self.channels == "BGR" else pixels
        return np.array(pixels.transpose(2, 0, 1), order="C")  # a copy: Pillow's own memory is not to be written to

    def level_table(self) -> NDArray[np.float32]:
        """[C, 256] float32: each level of each channel, scaled and normalised; the bits of `normalize`, in NumPy."""
        import numpy as np

        low, high = self.value_range
        values = np.arange(256, dtype=np.float32) / np.float32(255)
        if (low, high) != (0.0, 1.0):
            values = values * np.float32(high - low) + np.float32(low)
        mean, std = (np.array(stats, np.float32)[:, None] for stats in (self.mean, self.std))
        return (values - mean) / std

    def normalize(self, pixels: Tensor) -> Tensor:
        """[..., C, H, W] uint8 → float32 of the same shape, on the same device. Raises InputError for another dtype or channel count."""
        import torch

        if pixels.dtype != torch.uint8 or pixels.dim() < 3 or pixels.shape[-3] != self.channel_count:
            raise InputError(f"expected uint8 pixels of …×{self.channel_count}×H×W, got {pixels.dtype} of {_by(pixels.shape)}")
        low, high = self.value_range
        values = pixels.to(torch.float32) / 255
        if (low, high) != (0.0, 1.0):
            values = values.mul_(high - low).add_(low)
        mean, std = (torch.tensor(stats, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for stats in (self.mean, self.std))
        return values.sub_(mean).div_(std)

    def check(self, batch: Tensor) -> None:
        """Whether normalised pictures [N, C, H, W] can have come from this description: float, of its size, and within its range.

        Raises:
            InputError: they cannot; the text says what they look like instead.
        """
        import torch

        if not batch.is_floating_point():
            raise InputError(f"expected normalised floating-point pictures, got {batch.dtype}: raw pixels go through normalize() first")
        if batch.dim() != 4 or tuple(batch.shape[1:]) != self.output_shape:
            raise InputError(f"expected pictures of N×{_by(self.output_shape)}, got {_by(batch.shape)}")
        if not batch.numel():
            return
        self.check_range(*(of(batch.detach(), dim=(0, 2, 3)).tolist() for of in (torch.amin, torch.amax)))

    def check_range(self, least: Sequence[float], most: Sequence[float]) -> None:
        """Whether normalised pictures with these smallest and largest values of each channel can have come from this description.

        Raises:
            InputError: they cannot; the text says what they look like instead.
        """
        for channel, (smallest, largest, (low, high)) in enumerate(zip(least, most, self.bounds(), strict=True)):
            slack = _SLACK * (high - low)
            if not (low - slack <= smallest and largest <= high + slack):
                raise InputError(
                    f"channel {channel} runs from {smallest:.4g} to {largest:.4g}, but its normalisation gives {low:.4g} to {high:.4g}: "
                    "these pictures were scaled or normalised in another way"
                )


def _resize_aliased(image: Image, size: int | tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """[H, W, C] as PyTorch resizes tensors without a filter."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    sides = [size] if isinstance(size, int) else list(size)
    resized = F.resize(F.pil_to_tensor(image), sides, InterpolationMode(interpolation), antialias=False)
    return resized.permute(1, 2, 0).numpy()


def _check_growth(image: Image, resize: int | tuple[int, int]) -> None:
    """A strip of 20,000 × 10 would have a short side of 256 at 131 million pixels."""
    width, height = image.size
    grown = width * height * (resize / min(width, height)) ** 2 if isinstance(resize, int) else resize[0] * resize[1]
    most = limit(MAX_PIXELS)
    if grown > max(most, width * height):
        how = f"is too thin: with a shorter side of {resize}" if isinstance(resize, int) else f"is too large: resized to {_by(resize)}"
        raise InputError(f"a picture of {width}×{height} {how} it would have over {most:,} pixels ({MAX_PIXELS} raises the bound)")


# -- checking a description --------------------------------------------------------------------------------------------


def _side(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"preprocessing: a side is a whole number from 1, not {value!r}")
    return value


def _size(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        either = "the length of the shorter side, or " if name == "resize" else ""
        raise RequestError(f"preprocessing: {name} is {either}(height, width), not {value!r}")
    return (_side(value[0]), _side(value[1]))


def _short_or_exact(sides: Any) -> int | tuple[int, int]:
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _numbers(name: str, values: Any, count: int) -> Any:
    given = list(values) if isinstance(values, (list, tuple)) else []
    good = all(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in given)
    if len(given) != count or not good:
        raise RequestError(f"preprocessing: {name} is {count} number{'s' if count > 1 else ''}, not {values!r}")
    return tuple(float(value) for value in given)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _by(sizes: Any) -> str:
    return "×".join(map(str, sizes))


def _list(values: Stats) -> str:
    return "/".join(f"{value:g}" for value in values)
