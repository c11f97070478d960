"""What the description in a file must be before any of its fields is used: kinds, ranges, and what has to agree. Needs neither torch nor onnx."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fastcnn.limits import MAX_BYTES, MAX_RECORDS, beyond

# What reads the description knows this version and those before it.
FORMAT_VERSION = 1

# A check takes where a value stands and the value, and raises DamagedError where it is something else.
Check = Callable[[str, Any], None]

_PICTURES = 2  # of the golden pair; an int8 file keeps as many as it is judged by
_INT8 = "int8"
_FREE = ("batch", "height", "width")


class DamagedError(ValueError):
    """A field that is not what it must be. The text begins with the field."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")


def check_description(data: Any, format_: str) -> None:
    """Raises DamagedError for a description that no file of this format can have. Unknown fields are let through: later versions may have more."""
    _DESCRIPTION("description", data)
    if data["format_version"] > FORMAT_VERSION:
        raise DamagedError("format_version", f"{data['format_version']} is of a newer fastcnn, this one reads {FORMAT_VERSION}")
    if data["format"] != format_:
        raise DamagedError("format", f"it says {data['format']!r}, and the file is {format_!r}")
    shape = data["input"]["shape"]
    if any(isinstance(size, str) and size != free for size, free in zip(shape, _FREE, strict=False)) or any(
        isinstance(size, str) for size in shape[len(_FREE) :]
    ):
        raise DamagedError("input.shape", f"{_shown(shape)} has a free size where none can be")
    _check_golden(data["golden"], shape, None if data.get("precision") == _INT8 else _PICTURES)
    _check_others(data)


def _check_golden(golden: Mapping[str, Any], shape: list[int | str], kept: int | None) -> None:
    """Whether the pictures are such as the file takes, in the batches that it takes; `kept` is their number, None for any."""
    source, fixed = golden["input"], shape[0] if isinstance(shape[0], int) else None
    sizes = source["shape"]
    fits = len(sizes) == len(shape) and kept in (None, sizes[0])
    if not fits or any(isinstance(want, int) and want != got for want, got in zip(shape[1:], sizes[1:], strict=True)):
        raise DamagedError("golden.input.shape", f"{_shown(sizes)} is not {kept or 'some'} pictures of {_shown(shape)}")
    if (source.get("scale") is None) != (source.get("offset") is None):
        raise DamagedError("golden.input", "scale and offset belong together")
    item = 4 * math.prod(sizes[1:])  # a float32 picture
    total = sizes[0]
    for number, batch in enumerate(golden["batches"]):
        length, field = len(batch["pictures"]), f"golden.batches[{number}]"
        if length != fixed if fixed is not None else kept is not None and length > kept:
            raise DamagedError(f"{field}.pictures", f"{length:,} pictures are no batch of this file")
        if max(batch["pictures"]) >= sizes[0]:
            raise DamagedError(f"{field}.pictures", f"there is no picture {max(batch['pictures'])}, there are {sizes[0]}")
        total += length
        reason = beyond(MAX_BYTES, "the bytes of the batches are", item * total)
        if reason is not None:
            raise DamagedError(f"{field}.pictures", reason)
        for position, output in enumerate(batch["outputs"]):
            if len(output["data"]) != 4 * -(-8 * math.prod(output["shape"]) // 3):  # base64 of float64
                raise DamagedError(f"{field}.outputs[{position}]", f"{len(output['data']):,} characters are not {_shown(output['shape'])} numbers")


def _check_others(data: Mapping[str, Any]) -> None:
    """Whether what is kept of further inputs is such as they take, for as many pictures as the first."""
    pictures, others = data["golden"]["input"]["shape"][0], data["golden"].get("others", [])
    further = data.get("inputs", [data["input"]])[1:]
    if len(others) != len(further):
        raise DamagedError("golden.others", f"{len(others)} are not one for each of {len(further)} further inputs")
    for number, (entry, source) in enumerate(zip(further, others, strict=True)):
        sizes, field = source["shape"], f"golden.others[{number}]"
        if [pictures, *entry["shape"][1:]] != sizes:
            raise DamagedError(f"{field}.shape", f"{_shown(sizes)} is not {pictures} of {_shown(entry['shape'])}")
        reason = beyond(MAX_BYTES, "its bytes are", 8 * math.prod(sizes))
        if reason is not None:
            raise DamagedError(f"{field}.shape", reason)


# -- kinds of values -----------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _expect(good: bool, field: str, value: Any, what: str) -> None:
    if not good:
        raise DamagedError(field, f"{what} was expected, not {_shown(value)}")


def _text(field: str, value: Any) -> None:
    _expect(isinstance(value, str), field, value, "text")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(field: str, value: Any) -> None:
    good = isinstance(value, float) or _is_whole(value)
    _expect(good and abs(value) < 1e300 and math.isfinite(value), field, value, "a number")


def _positive(field: str, value: Any) -> None:
    _number(field, value)
    _expect(value > 0, field, value, "a number above 0")


def _whole(least: int, most: int = 2**31) -> Check:
    def check(field: str, value: Any) -> None:
        _expect(_is_whole(value) and least <= value <= most, field, value, f"a whole number from {least} to {most}")

    return check


def _one_of(*values: str) -> Check:
    return lambda field, value: _expect(isinstance(value, str) and value in values, field, value, " or ".join(values))


def _none_or(check: Check) -> Check:
    return lambda field, value: None if value is None else check(field, value)


def _list(check: Check, least: int = 0, most: int = 2**31) -> Check:
    def checked(field: str, value: Any) -> None:
        _expect(isinstance(value, list) and least <= len(value) <= most, field, value, f"a list of {least} entries or more" if least else "a list")
        reason = beyond(MAX_RECORDS, "its entries are", len(value))
        if reason is not None:
            raise DamagedError(field, reason)
        for number, item in enumerate(value):
            check(f"{field}[{number}]", item)

    return checked


def _mapping(check: Check) -> Check:
    def checked(field: str, value: Any) -> None:
        _expect(isinstance(value, dict), field, value, "an object")
        for name, item in value.items():
            check(f"{field}.{name}", item)

    return checked


def _object(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    def checked(field: str, value: Any) -> None:
        _expect(isinstance(value, dict), field, value, "an object")
        inside = "" if field == "description" else f"{field}."
        for name, check in required.items():
            if name not in value:
                raise DamagedError(f"{inside}{name}", "it is missing")
            check(f"{inside}{name}", value[name])
        for name, check in optional.items():
            if name in value:
                check(f"{inside}{name}", value[name])

    return checked


def _size(field: str, value: Any) -> None:
    if not isinstance(value, str):
        _whole(1)(field, value)
    else:
        _one_of(*_FREE)(field, value)


def _anything(field: str, value: Any) -> None:
    return


# -- the description -----------------------------------------------------------------------------------------------------

_SHAPE = _list(_size, 1, 8)
_SIZES = _list(_whole(1), 1, 8)
_DTYPE = _one_of("float16", "float32", "float64", "bfloat16", "uint8", "int8")
_INTEGER = _one_of("bool", "uint8", "int8", "int16", "int32", "int64")
_INPUT_DTYPE = _one_of("float16", "float32", "float64", "bfloat16", "bool", "uint8", "int8", "int16", "int32", "int64")
_GOLDEN_INPUT = _object(
    {"shape": _SIZES, "data": _text}, {"scale": _none_or(_number), "offset": _none_or(_number), "encoding": _text, "dtype": _INTEGER}
)

_DESCRIPTION = _object(
    {
        "format_version": _whole(1),
        "format": _text,
        "model": _object({"name": _text}, {"options": _mapping(_anything), "weights": _none_or(_text), "weights_sha256": _text}),
        "input": _object(
            {"name": _text, "shape": _SHAPE},
            {
                "layout": _text,
                "dtype": _INPUT_DTYPE,
                "normalization": _none_or(_object({"mean": _list(_number, 1), "std": _list(_positive, 1)}, {"rule": _text})),
                "preprocessing": _none_or(_mapping(_anything)),  # Preprocessing.from_dict looks into it, and says what is wrong
                "preprocessing_in_file": _one_of("none", "normalize", "resize"),
            },
        ),
        "outputs": _list(_object({"name": _text, "shape": _list(_anything, 0, 8)}, {"dtype": _text}), 1),
        "digests": _object({"weights": _text, "graph": _text}, {"description": _mapping(_text)}),
        "golden": _object(
            {
                "input": _GOLDEN_INPUT,
                "batches": _list(
                    _object(
                        {
                            "pictures": _list(_whole(0), 1),
                            "outputs": _list(_object({"shape": _list(_whole(0), 0, 8), "data": _text}, {}), 1),
                        },
                        {},
                    ),
                    1,
                ),
                "tolerance": _positive,
                "dtype": _DTYPE,
            },
            {"others": _list(_GOLDEN_INPUT, 1, 64)},
        ),
    },
    {
        "inputs": _list(_object({"name": _text, "shape": _SHAPE}, {"dtype": _INPUT_DTYPE}), 2, 64),
        "versions": _mapping(_text),
        "opset": _whole(1, 1000),
        "precision": _text,
        "quantization": _mapping(_anything),
        "mixed_precision": _mapping(_anything),
        "labels": _none_or(_list(_text)),
        "passes": _list(_text),
        "runtimes": _list(_text, 1),
        "left_out": _mapping(_text),
        "parity": _mapping(_object({}, {"relative_error": _anything, "tolerance": _anything, "batch_sizes": _list(_whole(1))})),
    },
)
