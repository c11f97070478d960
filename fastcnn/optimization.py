"""`fastcnn.optimize`: from a reference model to the fastest module that computes the same function."""

from __future__ import annotations

import copy
import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fastcnn.engines import available_backends, get_engine
from fastcnn.engines.base import Engine
from fastcnn.errors import BackendError, FastcnnError, InputError, ParityError, RequestError
from fastcnn.graph.capture import capture
from fastcnn.graph.given import unwrap
from fastcnn.graph.passes import INT8_PASSES, run_passes
from fastcnn.graph.plan import BackendTiming
from fastcnn.inputs import Inputs, as_inputs, copies, cut
from fastcnn.int8_builder import Int8Builder
from fastcnn.localization import first_that_differs
from fastcnn.optimized_module import ModuleSource, OptimizedModule
from fastcnn.parity import Expected, ParityReport, compare, expect, flatten, verify
from fastcnn.precision import exact_float32
from fastcnn.quantization.request import Calibration, Int8Request, Limits
from fastcnn.target import Target

log = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)
# Dtypes in which every runtime reads the same ONNX model.
_ONE_MODEL = (torch.float32, torch.int8)
_ROUNDS, _CALLS_PER_ROUND, _SETTLE_SECONDS, _MAX_SECONDS = 7, 2, 0.02, 6.0


def optimize(
    model: nn.Module,
    example_input: Inputs,
    *,
    dtype: torch.dtype | Literal["auto"] | None = None,
    backend: str = "auto",
    allow_tf32: bool = False,
    check: bool = True,
    calibration: Calibration | None = None,
    max_error: float | None = None,
    max_accuracy_drop: float | None = None,
) -> OptimizedModule:
    """Make the fastest module that computes the same function as `model`, which stays untouched.

    Args:
        model: any classifier in evaluation mode that `torch.export` can capture.
        example_input: [N, C, H, W] on the model's device; a tuple where the model takes several. The batch stays dynamic, the other sizes are fixed;
            `auto` measures with this batch.
        dtype: what weights are rounded to and the engine computes in: the dtype of the first floating-point example by default, float32 where there
            are integers alone; `torch.float16` or `torch.bfloat16` on request;
            `torch.int8` for products of 8-bit numbers between a float32 input and output, on onnxruntime and openvino, with `calibration`; "auto" for
            the fastest of float32, bfloat16 and, with `calibration`, int8, of those that keep to `max_error`.
        backend: "torch", "triton", "onnxruntime", "openvino" or "ncnn"; an explicit one never falls back to another. "auto" times those that can
            run and keeps the fastest.
        allow_tf32: float32 products may round their operands to 10 bits of mantissa on a GPU whose tensor cores are faster so.
        check: hold the result against the reference in float64 on the example before it is returned; in int8, on pictures kept apart.
        calibration: of int8: a folder of pictures, which become input as the model says; a .npy or .npz file, or an array, of preprocessed ones
            [N, C, H, W]; or the .json file of ranges that an export saved.
        max_error: bound on the relative L2 error: of int8 on pictures kept apart, 0.1 by default, layers that hurt most going back to float until it
            holds; of bfloat16 with dtype="auto", which has no default, on the example.
        max_accuracy_drop: of int8: the share of the pictures kept apart that may get another best class, 0.02 by default.

    Raises:
        InputError, CaptureError: see `fastcnn.graph.capture.capture`.
        BackendError: the backend cannot run here, or not with this dtype or device.
        ParityError: the result does not compute the same function; of an explicit backend the error names the first operation that differs.
        RequestError: int8 without pictures that can serve, or options of int8 for another dtype.
    """
    limits = {name: value for name, value in (("max_error", max_error), ("max_accuracy_drop", max_accuracy_drop)) if value is not None}
    request = Request(dtype, backend, allow_tf32=allow_tf32, check=check, calibration=calibration, limits=limits)
    return build(model, example_input, request)[0]


@dataclass(frozen=True)
class Request:
    """What is asked of `optimize`, whose arguments these are; `limits` are those of max_error and max_accuracy_drop that were given.

    Raises RequestError where they do not fit each other, BackendError for a backend that there is not.
    """

    dtype: torch.dtype | Literal["auto"] | None = None
    backend: str = "auto"
    _: KW_ONLY
    allow_tf32: bool = False
    check: bool = True
    calibration: Calibration | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.backend != "auto":
            get_engine(self.backend)
        if self.dtype == "auto":
            if "max_error" not in self.limits:
                raise RequestError('dtype "auto" needs max_error=: how far the answers of a faster precision may be off, as in max_error=0.02')
            Limits(**self.limits)
        elif self.dtype != torch.int8 and (self.calibration is not None or self.limits):
            raise RequestError(f"calibration, max_error and max_accuracy_drop are for dtype=torch.int8, and dtype is {self.dtype}: leave them out")
        elif self.dtype == torch.int8 and self.calibration is None:
            raise RequestError(
                "dtype torch.int8 needs calibration=: a folder of pictures, a .npy file or an array of preprocessed ones, or ranges.json"
            )

    @property
    def int8(self) -> Int8Request | None:
        """The quantization that is asked for."""
        return None if self.calibration is None else Int8Request(calibration=self.calibration, limits=Limits(**self.limits))


def build(model: nn.Module, example: Inputs, request: Request, say: Callable[[str], None] = lambda stage: None) -> tuple[OptimizedModule, Builder]:
    """As `optimize`; also gives what built the module, which checks another one of the same kind. `say` is told each stage of a calibration."""
    model = unwrap(model)
    # With several candidates only what was built right may win.
    check = request.check or request.dtype == "auto"
    examples = as_inputs(example)
    if request.int8 is not None and (len(examples) > 1 or not examples[0].is_floating_point()):
        raise RequestError("int8 is for models of one floating-point input: its calibration shows pictures to that one")
    if request.dtype != "auto":
        int8 = None if request.int8 is None else Int8Builder(model, examples[0], request.int8, say)
        builders = [Builder(model, example, dtype=request.dtype, allow_tf32=request.allow_tf32, check=check, int8=int8)]
    else:
        if any(one.is_floating_point() and one.dtype != torch.float32 for one in examples):
            raise InputError(f'dtype "auto" begins with float32; the example is {examples[0].dtype}')
        first = Builder(model, example, allow_tf32=request.allow_tf32, check=check)
        builders = [first, first.again(torch.bfloat16, max_error=request.limits["max_error"])]
        if request.int8 is not None:
            builders.append(first.again(torch.int8, int8=Int8Builder(model, examples[0], request.int8, say)))
    if len(builders) == 1 and request.backend != "auto":
        return builders[0].build(get_engine(request.backend)), builders[0]
    return _fastest(builders, list(available_backends()) if request.backend == "auto" else [request.backend])


class Builder:
    """Builds a module with one engine after another from one capture; what they have in common, the ONNX model and the float64 run, is made once.

    Arguments and errors as in `optimize`; `int8` quantizes for that dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        *,
        dtype: torch.dtype | None = None,
        allow_tf32: bool = False,
        check: bool = True,
        int8: Int8Builder | None = None,
    ) -> None:
        if dtype is not None and dtype not in _DTYPES:
            raise RequestError(f"dtype {dtype} is not one of {', '.join(map(str, _DTYPES))}")
        model = unwrap(model)
        self.captured = capture(model, example)
        self.examples = as_inputs(example)
        own = next((one.dtype for one in self.examples if one.is_floating_point()), torch.float32)
        self.target = Target(self.examples[0].device, dtype or own, self.examples[0].shape[0], allow_tf32)
        self.model, self.check = model, check
        self._int8, self._max_error = int8, math.inf
        self._state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
        self._sources: dict[tuple[str, ...], ModuleSource] = {}
        self._artifacts: dict[tuple[str, ...], bytes] = {}

    def again(self, dtype: torch.dtype, *, int8: Int8Builder | None = None, max_error: float = math.inf) -> Builder:
        """A builder for another dtype from the same capture; `max_error` bounds the relative error on the example, beside the rule of the dtype."""
        other = copy.copy(self)
        vars(other).pop("_expected", None)
        other.target, other._int8, other._max_error = replace(self.target, dtype=dtype), int8, max_error
        other._sources, other._artifacts = {}, {}
        return other

    @property
    def precision(self) -> str:
        """The dtype's name."""
        return str(self.target.dtype).removeprefix("torch.")

    def verify(self, module: OptimizedModule) -> ParityReport:
        """Holds a module of this dtype, whoever built it, against the model: on pictures kept apart in int8, by the rules of parity otherwise."""
        return self._int8.report(module) if self._int8 is not None else verify(module, self.model, cut(self.examples, 0, 2))

    def build(self, engine: Engine, *, locate: bool = True) -> OptimizedModule:
        """The module that runs on `engine`, held against the reference where the builder checks.

        Where it differs, the error names the operation, unless `locate` is False: the search lowers the graph some ten times more.

        Raises:
            BackendError: the engine cannot run on this device, in this dtype, or not this graph.
            ParityError: the result does not compute the same function.
        """
        reason = engine.unsupported(self.target)
        if reason:
            raise BackendError(f"backend {engine.name!r}: {reason}")
        passes = tuple(engine.passes if self._int8 is None else [name for name in engine.passes if name in INT8_PASSES])
        source = self._source(passes)
        # The ONNX model of one runtime serves the other.
        lowered = engine.lower(source.graph, self.target, self._artifacts.get(passes) if self.target.dtype in _ONE_MODEL else None)
        if lowered.artifact is not None:
            self._artifacts[passes] = lowered.artifact
        module = OptimizedModule(source, engine, lowered)
        if self.check:
            self._require_parity(module, locate)
        return module

    def _source(self, passes: tuple[str, ...]) -> ModuleSource:
        if passes not in self._sources:
            graph, reports = run_passes(self.captured, passes)
            if self._int8 is not None:
                graph, report = self._int8.quantize(graph)
                reports = (*reports, report)
            graph.cast_constants(torch.float32 if self._int8 is not None else self.target.dtype)
            self._sources[passes] = ModuleSource(graph, self.target, reports, self._state)
        return self._sources[passes]

    @functools.cached_property
    def _expected(self) -> Expected:
        # One picture too: models and runtimes treat a batch of one apart.
        sizes = sorted({1, self.target.usual_batch})
        return expect(self.model, self.examples, [(0, size) for size in sizes], dtype=self.target.dtype, tf32=self.target.tf32)

    def _require_parity(self, module: OptimizedModule, locate: bool) -> None:
        if self._int8 is not None:
            self._int8.require(module)
            return
        with exact_float32(), torch.no_grad():
            # The output has the input's dtype, which must not round what was computed in a wider one.
            pictures = tuple(_widened(example, self.target.dtype) for example in self.examples)
            # The largest first: an engine that plans its memory then need not plan it again for each.
            ordered = sorted(self._expected.slices, key=lambda bounds: bounds[0] - bounds[1])
            outputs = {bounds: flatten(module(*copies(cut(pictures, *bounds)))) for bounds in ordered}
        report = compare([outputs[bounds] for bounds in self._expected.slices], self._expected)
        wrong = next((row for row in report.rows if row.reason), None)
        where = self._first_that_differs(module, cut(pictures, 0, wrong.batch_size), wrong.tolerance) if wrong is not None and locate else None
        report.require(f"backend {module.backend!r}" + (f", from {where} on," if where else ""))
        if report.relative_error > self._max_error:
            raise ParityError(f"relative error {report.relative_error:.2g} on the example is above max_error {self._max_error:g}", report)

    def _first_that_differs(self, module: OptimizedModule, pictures: tuple[Tensor, ...], tolerance: float) -> str | None:
        try:
            return first_that_differs(module.source.graph, module.engine, self.target, copies(pictures, self.target.dtype), tolerance)
        except Exception:  # the search may fail as the module did, and the module's failure is what there is to tell
            log.debug("%s: cannot tell which operation differs", module.backend, exc_info=True)
            return None


def _fastest(builders: Sequence[Builder], names: Sequence[str]) -> tuple[OptimizedModule, Builder]:
    """Build with every engine of `names` that can run, time them in turns, keep the fastest; the choice is in the log and in the plan."""
    built: dict[str, tuple[OptimizedModule, Builder]] = {}
    left_out: list[BackendTiming] = []
    for builder in builders:
        for name in names:
            label = name if len(builders) == 1 else f"{name} {builder.precision}"
            made = _attempt(builder, name, asked=len(names) == 1)
            if isinstance(made, str):
                left_out.append(BackendTiming(label, None, made))
            else:
                built[label] = made, builder
    if not built:
        raise BackendError("no backend can run this model: " + "; ".join(f"{timing.backend}: {timing.why}" for timing in left_out))
    times = time_in_turns({label: module for label, (module, _) in built.items()}, builders[0].examples)
    best = min(times, key=times.__getitem__)
    timed = [
        BackendTiming(name, seconds * 1e3, "the fastest" if name == best else f"{seconds / times[best]:.2f}× the time of {best}")
        for name, seconds in sorted(times.items(), key=lambda item: item[1])
    ]
    for timing in (*timed, *left_out):
        log.info("auto: %s: %s (%s)", timing.backend, f"{timing.milliseconds:.2f} ms" if timing.milliseconds else "left out", timing.why)
    fastest, builder = built[best]
    # A source of its own: backends with the same passes share theirs, and what was measured belongs to this module.
    return OptimizedModule(replace(fastest.source, choice=(*timed, *left_out)), fastest.engine, fastest.lowered), builder


def _attempt(builder: Builder, name: str, *, asked: bool) -> OptimizedModule | str:
    """The module that the backend `name` makes, or why there is none; one that was `asked` for need not be fit for `auto`."""
    reason = available_backends()[name]
    if reason is None:
        engine = get_engine(name)
        reason = (None if asked else engine.unfit_for_auto()) or engine.unsupported(builder.target)
    if reason is not None:
        return reason
    try:
        module = builder.build(engine, locate=False)
        module(*builder.examples)  # also where nothing was checked: what cannot run is not timed
        return module
    except FastcnnError as error:
        return str(error)
    except Exception as error:  # whatever a runtime raises: the others still run
        log.debug("auto: %s broke", name, exc_info=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _widened(example: Tensor, dtype: torch.dtype) -> Tensor:
    return example.to(torch.promote_types(example.dtype, dtype)) if example.is_floating_point() else example


def time_in_turns(modules: dict[str, OptimizedModule], examples: Sequence[Tensor]) -> dict[str, float]:
    """Median seconds of a call for each module, measured in turns so that a change of the machine's speed meets all of them.

    Thread pools spin for a while after their work is done and take the cores from the next runtime; hence the pause and the untimed call at each
    turn.
    """
    samples: dict[str, list[float]] = {name: [] for name in modules}
    deadline = time.perf_counter() + _MAX_SECONDS
    for _ in range(_ROUNDS):
        for name, module in modules.items():
            time.sleep(_SETTLE_SECONDS)
            module(*examples)
            for _ in range(_CALLS_PER_ROUND):
                start = time.perf_counter()
                module(*examples)
                if examples[0].is_cuda:
                    torch.cuda.synchronize(examples[0].device)
                samples[name].append(time.perf_counter() - start)
        if time.perf_counter() > deadline:
            break
    return {name: statistics.median(values) for name, values in samples.items()}
