"""Make the options of an export fit the runtime that the file is for, or say why none would. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from fastcnn.errors import RequestError
from fastcnn.export.formats import FORMATS
from fastcnn.export.options import ExportOptions
from fastcnn.export.preprocess import Preprocess
from fastcnn.export.profiles import Batch, Profile


@dataclass(frozen=True)
class Change:
    """An option that was left open, and what the runtime makes of it."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


def adapt(options: ExportOptions, profile: Profile, asked: Collection[str] = ()) -> tuple[ExportOptions, tuple[Change, ...]]:
    """The options for a file that the runtime of `profile` reads, and what changed.

    Args:
        asked: names of options that were given as they are, even where they are the default: "batch_size", "quantize_for".

    Raises:
        RequestError: what was asked for cannot work there.
    """
    name, title = profile.name, profile.title
    if options.format.name not in profile.formats:
        known = " or ".join(f"--{one}" for one in profile.formats)
        raise RequestError(f"--for {name}: {title} opens no {FORMATS[options.format.name].title} file: give {known}")
    if options.precision in profile.no_precision:
        raise RequestError(f"--for {name} and --precision {options.precision.value} do not go together: {profile.no_precision[options.precision]}")
    if options.preprocess in profile.no_preprocess:
        why = profile.no_preprocess[options.preprocess]
        raise RequestError(f"--for {name} and --preprocess {options.preprocess.value} do not go together: {why}")
    if profile.sized_resize and options.preprocess is Preprocess.resize and options.picture_size is None:
        raise RequestError(f"--for {name} and --preprocess resize of any picture do not go together: {profile.sized_resize}")
    if profile.newest_opset is not None and (options.opset or 0) > profile.newest_opset:
        raise RequestError(f"--for {name} and --opset {options.opset} do not go together: {profile.opset_reason}")
    changes = []
    options, change = _with_batch(options, profile, "batch_size" in asked)
    changes += change
    options, change = _with_kernels(options, profile, "quantize_for" in asked)
    changes += change
    if profile.cast_first and options.preprocess is not Preprocess.none:
        changes.append(Change("pixels become floating point before they are transposed", f"{title} takes uint8 as an input that is cast at once"))
    return replace(options, profile=profile), tuple(changes)


def _with_batch(options: ExportOptions, profile: Profile, asked: bool) -> tuple[ExportOptions, list[Change]]:
    if profile.batch is Batch.dynamic and options.batch_size is not None:
        raise RequestError(f"--for {profile.name} and --batch-size {options.batch_size} do not go together: {profile.batch_reason}")
    if profile.batch is not Batch.fixed or options.batch_size is not None:
        return options, []
    if asked:
        raise RequestError(f"--for {profile.name} and --batch-size dynamic do not go together: {profile.batch_reason}")
    return replace(options, batch_size=1), [Change("batches of 1 instead of any size", profile.batch_reason)]


def _with_kernels(options: ExportOptions, profile: Profile, asked: bool) -> tuple[ExportOptions, list[Change]]:
    wanted, int8 = profile.quantize_for, options.int8
    if int8 is None or int8.quantize_for is wanted:
        return options, []
    if asked:
        raise RequestError(
            f"--for {profile.name} and --quantize-for {int8.quantize_for.value} do not go together: "
            f"{profile.title} has the kernels of --quantize-for {wanted.value}"
        )
    changed = replace(options, int8=replace(int8, quantize_for=wanted))
    return changed, [Change(f"quantized for {wanted.value} instead of {int8.quantize_for.value}", f"these are the kernels of {profile.title}")]
