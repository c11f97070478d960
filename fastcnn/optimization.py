"""`fastcnn.optimize`: from a reference model to the fastest module that computes the same function."""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastcnn.engines import available_backends, get_engine
from fastcnn.engines.base import Engine
from fastcnn.errors import BackendError, FastcnnError, RequestError
from fastcnn.graph.capture import capture
from fastcnn.graph.given import unwrap
from fastcnn.graph.passes import INT8_PASSES, run_passes
from fastcnn.graph.plan import BackendTiming
from fastcnn.inputs import Inputs, as_inputs, copies, cut
from fastcnn.int8_builder import Int8Builder
from fastcnn.localization import first_that_differs
from fastcnn.optimized_module import ModuleSource, OptimizedModule
from fastcnn.parity import Expected, compare, expect, flatten
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
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    allow_tf32: bool = False,
    check: bool = True,
    calibration: Calibration | None = None,
    max_error: float | None = None,
) -> OptimizedModule:
    """Make the fastest module that computes the same function as `model`, which stays untouched.

    Args:
        model: any classifier in evaluation mode that `torch.export` can capture.
        example_input: [N, C, H, W] on the model's device; a tuple where the model takes several. The batch stays dynamic, the other sizes are fixed;
            `auto` measures with this batch.
        dtype: what weights are rounded to and the engine computes in: the dtype of the first floating-point example by default, float32 where there
            are integers alone; `torch.float16` or `torch.bfloat16` on request;
            `torch.int8` for products of 8-bit numbers between a float32 input and output, on onnxruntime and openvino, with `calibration`.
        backend: "torch", "triton", "onnxruntime", "openvino" or "ncnn"; an explicit one never falls back to another. "auto" times those that can
            run and keeps the fastest.
        allow_tf32: float32 products may round their operands to 10 bits of mantissa on a GPU whose tensor cores are faster so.
        check: hold the result against the reference in float64 on the example before it is returned; in int8, on pictures kept apart.
        calibration: of int8: a folder of pictures, which become input as the model says; a .npy or .npz file, or an array, of preprocessed ones
            [N, C, H, W]; or the .json file of ranges that an export saved.
        max_error: of int8: bound on the relative L2 error on pictures kept apart, 0.1 by default; layers that hurt most go back to float until it
            holds.

    Raises:
        InputError, CaptureError: see `fastcnn.graph.capture.capture`.
        BackendError: the backend cannot run here, or not with this dtype or device.
        ParityError: the result does not compute the same function; of an explicit backend the error names the first operation that differs.
        RequestError: int8 without pictures that can serve, or options of int8 for another dtype.
    """
    engine = None if backend == "auto" else get_engine(backend)
    int8 = _int8_request(dtype, calibration, max_error)
    builder = Builder(model, example_input, dtype=dtype, allow_tf32=allow_tf32, check=check, int8=int8)
    return _fastest(builder) if engine is None else builder.build(engine)


def _int8_request(dtype: torch.dtype | None, calibration: Calibration | None, max_error: float | None) -> Int8Request | None:
    """The options of int8, for that dtype and no other. Raises RequestError."""
    if dtype != torch.int8:
        if calibration is not None or max_error is not None:
            raise RequestError(f"calibration and max_error are for dtype=torch.int8, and dtype is {dtype}: leave them out")
        return None
    if calibration is None:
        raise RequestError("dtype torch.int8 needs calibration=: a folder of pictures, a .npy file or an array of preprocessed ones, or ranges.json")
    return Int8Request(calibration=calibration, limits=Limits() if max_error is None else Limits(max_error))


class Builder:
    """Builds a module with one engine after another from one capture; what they have in common, the ONNX model and the float64 run, is made once.

    Arguments and errors as in `optimize`.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        *,
        dtype: torch.dtype | None = None,
        allow_tf32: bool = False,
        check: bool = True,
        int8: Int8Request | None = None,
    ) -> None:
        if dtype is not None and dtype not in _DTYPES:
            raise RequestError(f"dtype {dtype} is not one of {', '.join(map(str, _DTYPES))}")
        model = unwrap(model)
        self.captured = capture(model, example)
        self.examples = as_inputs(example)
        own = next((one.dtype for one in self.examples if one.is_floating_point()), torch.float32)
        self.target = Target(self.examples[0].device, dtype or own, self.examples[0].shape[0], allow_tf32)
        self.model, self.check = model, check
        if int8 is not None and (len(self.examples) > 1 or not self.examples[0].is_floating_point()):
            raise RequestError("int8 is for models of one floating-point input: its calibration shows pictures to that one")
        self._int8 = None if int8 is None else Int8Builder(model, self.examples[0], int8)
        self._state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
        self._sources: dict[tuple[str, ...], ModuleSource] = {}
        self._artifacts: dict[tuple[str, ...], bytes] = {}

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

    def _first_that_differs(self, module: OptimizedModule, pictures: tuple[Tensor, ...], tolerance: float) -> str | None:
        try:
            return first_that_differs(module.source.graph, module.engine, self.target, copies(pictures, self.target.dtype), tolerance)
        except Exception:  # the search may fail as the module did, and the module's failure is what there is to tell
            log.debug("%s: cannot tell which operation differs", module.backend, exc_info=True)
            return None


def _fastest(builder: Builder) -> OptimizedModule:
    """Build with every engine that can run, time them in turns, keep the fastest; the choice is in the log and in the plan."""
    built: dict[str, OptimizedModule] = {}
    left_out: list[BackendTiming] = []
    for name, reason in available_backends().items():
        if reason is None:
            engine = get_engine(name)
            reason = engine.unfit_for_auto() or engine.unsupported(builder.target)
        if reason is None:
            try:
                module = builder.build(engine, locate=False)
                module(*builder.examples)  # also where nothing was checked: what cannot run is not timed
                built[name] = module
                continue
            except FastcnnError as error:
                reason = str(error)
            except Exception as error:  # whatever a runtime raises: the others still run
                log.debug("auto: %s broke", name, exc_info=True)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        left_out.append(BackendTiming(name, None, reason))
    if not built:
        raise BackendError("no backend can run this model: " + "; ".join(f"{timing.backend}: {timing.why}" for timing in left_out))
    times = time_in_turns(built, builder.examples)
    best = min(times, key=times.__getitem__)
    timed = [
        BackendTiming(name, seconds * 1e3, "the fastest" if name == best else f"{seconds / times[best]:.2f}× the time of {best}")
        for name, seconds in sorted(times.items(), key=lambda item: item[1])
    ]
    for timing in (*timed, *left_out):
        log.info("auto: %s: %s (%s)", timing.backend, f"{timing.milliseconds:.2f} ms" if timing.milliseconds else "left out", timing.why)
    fastest = built[best]
    # A source of its own: backends with the same passes share theirs, and what was measured belongs to this module.
    return OptimizedModule(replace(fastest.source, choice=(*timed, *left_out)), fastest.engine, fastest.lowered)


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
