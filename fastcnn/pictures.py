"""Pictures as files and in memory: finding them, decoding them one by one without trusting any, bringing any mode to 8 bits a channel."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

from fastcnn.errors import FastcnnError, InputError, RequestError
from fastcnn.limits import MAX_PIXELS, limit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

S = TypeVar("S")
T = TypeVar("T")

# Formats that Pillow decodes itself: others start programs (EPS) or hold anything but pictures.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")


class PictureError(FastcnnError):
    """A file that is no picture, or a damaged one; the run goes on without it."""


def find_pictures(arguments: Iterable[str]) -> list[str]:
    """The picture files that files, folders and wildcard patterns mean, each once, as paths that begin like the arguments.

    A file is taken whatever its name ends in. Of a folder and all folders in it, the files that end like pictures are taken, sorted by path;
    hidden ones are left out. A pattern (`*`, `?`, `[…]`, `**`) is for the shells that do not expand it, and is treated in the same way.

    Raises:
        RequestError: an argument that matches nothing.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        matches = _matches(argument)
        if not matches:
            what = f"no picture in the folder {argument}" if os.path.isdir(argument) else f"{argument} matches no picture"
            raise RequestError(f"{what}; pictures end in {', '.join(sorted(_suffixes())[:12])} and so on")
        found |= dict.fromkeys(matches)
    return list(found)


def _matches(argument: str) -> list[str]:
    if os.path.isdir(argument):
        return _in_folder(argument)
    if os.path.exists(argument):
        return [argument]
    if not glob.has_magic(argument):
        raise RequestError(f"no picture or folder {argument}")
    matches: list[str] = []
    for path in sorted(glob.glob(argument, recursive=True)):
        # With ** the files of a folder match by themselves.
        if os.path.isdir(path):
            matches += [] if "**" in argument else _in_folder(path)
        elif is_picture_name(path):
            matches.append(path)
    return matches


def _in_folder(folder: str) -> list[str]:
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in files if not name.startswith(".") and is_picture_name(name)]
    return sorted(paths)


def is_picture_name(name: str) -> bool:
    """Whether a name ends like that of a picture."""
    return os.path.splitext(name)[1].lower() in _suffixes()


@functools.cache
def _suffixes() -> frozenset[str]:
    from PIL import Image

    known = _formats()
    return frozenset(suffix for suffix, format_ in Image.registered_extensions().items() if format_ in known)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow reads; it stumbles over a name that it lacks."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(source: str | BinaryIO) -> Image:
    """A picture, by its path or from an open file, decoded whole; of several in one file the first.

    Raises:
        PictureError: it cannot be read, is none of `FORMATS`, or is truncated or damaged.
    """
    from PIL import UnidentifiedImageError

    try:
        if isinstance(source, str) and not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait for somebody who writes to it
            raise PictureError("not a file, but a device or a pipe")
        with _open_up_to(limit(MAX_PIXELS), source) as image:
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise PictureError("not a picture, or of a format that is not read") from error
    except OSError as error:
        raise PictureError(_reason(error.strerror or error)) from error
    except PictureError:
        raise
    except Exception as error:  # the decoders raise whatever a damaged file makes them stumble over
        raise PictureError(_reason(error)) from error


def _open_up_to(most: int, source: str | BinaryIO) -> Image:
    """A picture that is not decoded yet, of so many pixels at most. Raises PictureError for one that says it has more."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and most > 2 * Image.MAX_IMAGE_PIXELS:  # from twice its own bound on Pillow refuses a picture
        Image.MAX_IMAGE_PIXELS = most
    image = Image.open(source, formats=_formats())
    width, height = image.size
    if width * height > most:
        image.close()
        raise PictureError(f"{width}×{height} are more than {most:,} pixels ({MAX_PIXELS} raises the bound)")
    return image


def _reason(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_ahead(read: Callable[[S], T], files: Iterable[S], *, workers: int, ahead: int) -> Iterator[T | PictureError]:
    """`read` of every file, in order, by `workers` threads that run at most `ahead` files before the reader; its PictureErrors are yielded.

    Pillow and NumPy let go of the interpreter while they work, so threads suffice. Closing the generator stops the threads after their file.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastcnn-decode")
    try:
        waiting: deque[Future[T]] = deque()
        rest = iter(files)
        while True:
            while len(waiting) < ahead and (file := next(rest, None)) is not None:
                waiting.append(pool.submit(read, file))
            if not waiting:
                return
            try:
                yield waiting.popleft().result()
            except PictureError as error:
                yield error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def to_mode(image: Image, mode: Literal["RGB", "L"]) -> Image:
    """Any picture as RGB or L with 8 bits, upright as its EXIF orientation says.

    What is transparent is laid on white, as viewers show it. 16-bit levels are scaled by 255 / 65535 and rounded; floating-point pictures run
    from 0 to 1. Palettes, CMYK, YCbCr, HSV and 1-bit pictures go through Pillow's own conversion.

    Raises:
        InputError: integers beyond 16 bits, floats beyond [0, 1], or a mode that Pillow cannot convert.
    """
    from PIL import Image as PillowImage
    from PIL import ImageOps

    # Damaged EXIF data says nothing of the orientation; whatever it makes Pillow stumble over, the picture itself may be whole.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode == mode and "transparency" not in image.info:
        return image
    try:
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bits(image)
        if image.mode == "La":  # Pillow takes premultiplied grey to nothing but plain grey with alpha
            image = image.convert("LA")
        if image.mode in ("PA", "RGBa", "LA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            background = PillowImage.new("RGBA", image.size, (255, 255, 255, 255))
            image = PillowImage.alpha_composite(background, image).convert("RGB")
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise InputError(f"a picture of mode {image.mode} cannot be converted to {mode}: {error}") from error


def resize(image: Image, size: int | tuple[int, int], interpolation: str) -> Image:
    """A picture at another size, low-pass filtered where it shrinks.

    Args:
        size: of the shorter side, where the longer one becomes what keeps the aspect ratio, rounded down; or (height, width).
        interpolation: one of `fastcnn.preprocessing.INTERPOLATIONS`.
    """
    from PIL.Image import Resampling

    if isinstance(size, int):
        width, height = image.size
        longer = int(size * max(width, height) / min(width, height))
        size = (longer, size) if height >= width else (size, longer)
    return image.resize((size[1], size[0]), Resampling[interpolation.upper()])


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """A picture of 8 bits a channel → [H, W, C] uint8."""
    import numpy as np

    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def crop_middle(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W, C] → [height, width, C] from the middle, a side that is too short padded with zeros.

    Of an odd number of pixels to cut away, rounded to even, as torchvision does it; of one to add, the odd one is behind the picture.
    """
    import numpy as np

    missing = [max(0, want - have) for want, have in zip(size, pixels.shape, strict=False)]
    if any(missing):
        pixels = np.pad(pixels, [*((short // 2, (short + 1) // 2) for short in missing), (0, 0)])
    top, left = (round((have - want) / 2) for want, have in zip(size, pixels.shape, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]


def _eight_bits(image: Image) -> Image:
    import numpy as np
    from PIL import Image as PillowImage

    values = np.asarray(image)
    most = 1.0 if image.mode == "F" else 65535.0
    if values.size and not (values.min() >= 0 and values.max() <= most):  # NaN fails as well
        raise InputError(f"a picture of mode {image.mode} holds values from {values.min():g} to {values.max():g}; they must lie in 0 to {most:g}")
    return PillowImage.fromarray(np.floor(values.astype(np.float64) * (255 / most) + 0.5).astype(np.uint8))
