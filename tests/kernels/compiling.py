"""What the compiler makes of a kernel on GPUs that are not here: registers, spills, shared memory, and the tensor-core instruction used.

A kernel is compiled through Triton to machine code for each target and read with Triton's own cuobjdump. That needs no GPU, and a process in which
Triton does not interpret: `compile_kernels` starts one at its first call and keeps it, because importing PyTorch and Triton takes longer than most
kernels do.

    requests = [KernelRequest("fastcnn.kernels.concat", "_concat_relu_kernel", {"x_ptr": "*fp16", "stride": 64, "BLOCK": 256}, num_warps=4)]
    requests = [CallRequest("concat_relu([nhwc(8, 64, 35, 35), nhwc(8, 96, 35, 35)])", "from fastcnn.kernels import concat_relu")]
    for binary in compile_kernels(requests, sms=(90,)): assert binary.spills == 0
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SMS = (80, 89, 90, 100)
# Shared memory that one block may ask for, bytes (CUDA C++ Programming Guide, technical specifications per compute capability).
SHARED_MEMORY_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}

TIMEOUT_SECONDS = 600
_MMA = re.compile(r"\b(HGMMA|IGMMA|QGMMA|UTC\w*MMA|HMMA|IMMA|QMMA|DMMA)\b")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z0-9_]+)(.*?);", re.MULTILINE)
_SPILL = re.compile(r"\b(STL|LDL)\b")
_BARRIERS_AND_PRODUCTS = re.compile(r"\b(wait_barrier|arrive_barrier|warp_group_dot_wait|warp_group_dot)\b")
_WIDEST_ACCESS = re.compile(r"\b(?:LDG|STG)\.E(?:\.\w+)*?\.(128|64)\b")


@dataclass(frozen=True)
class KernelRequest:
    """One kernel with named arguments, as a launch would see them.

    Args:
        module, kernel: where the `@triton.jit` function is.
        arguments: for each parameter a value: a pointer is written as its type ("*fp16", "*bf16", "*fp32", "*u8") and taken as aligned to
            16 bytes, everything else as itself. Integers are specialised as Triton does: 1 becomes a constant, multiples of 16 are marked.
        num_warps, num_stages, options: what the launch would pass on (`maxnreg`, `launch_pdl`).
    """

    module: str
    kernel: str
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CallRequest:
    """A call of the public operation: every kernel it would launch is compiled with exactly the arguments that it would launch it with.

    Args:
        call: a Python expression; `torch` and `nhwc(n, c, h, w, dtype=torch.float16)` (channels_last, uninitialised) are at hand.
        setup: statements that run before it.
    """

    call: str
    setup: str = ""


@dataclass(frozen=True)
class Binary:
    """One kernel compiled for one GPU.

    Attributes:
        request: index of the request it came from.
        kernel: name of the function.
        sm: compute capability, 90 for 9.0.
        registers: of one thread.
        spills: instructions that store registers to memory or load them back.
        stack: bytes of one thread's stack.
        shared: bytes of shared memory of one block.
        mma: names of the tensor-core instructions in it ("HGMMA" is wgmma, "HMMA" mma.sync, "UTCHMMA" tcgen05).
        widest_access: bits of the widest load or store of global memory.
        num_warps: of one block; where warps are specialised, of the groups that multiply or load, each.
        opcodes: how often each instruction stands in it, without modifiers ("UTMALDG" is a load by the TMA).
        mma_text: the tensor-core instructions with their operands.
        multiplying_loop: where warps are specialised, what a group that multiplies does in one step with barriers and
            the tensor cores, in order and as Triton's GPU dialect calls it; else empty.
    """

    request: int
    kernel: str
    sm: int
    registers: int
    spills: int
    stack: int
    shared: int
    mma: tuple[str, ...]
    widest_access: int
    num_warps: int
    opcodes: dict[str, int]
    mma_text: tuple[str, ...]
    multiplying_loop: tuple[str, ...]

    def check_resources(self) -> None:
        """Fails where the kernel spills registers or asks for more shared memory than a block may have."""
        assert self.spills == 0, f"{self.kernel} on sm_{self.sm} spills: {self}"
        assert self.stack == 0, f"{self.kernel} on sm_{self.sm} uses a stack: {self}"
        assert self.shared <= SHARED_MEMORY_LIMIT[self.sm], f"{self.kernel} on sm_{self.sm} asks for too much shared memory: {self}"


def compile_kernels(requests: Sequence[KernelRequest | CallRequest], sms: Sequence[int] = SMS) -> list[Binary]:
    """Compiles every request for every GPU, in the process that compiles for this one.

    Raises:
        AssertionError: a request failed, or the process ended; holds what it wrote.
    """
    global _compiler
    if _compiler is None or not _compiler.is_running():
        _compiler = _Compiler()
    answer = _compiler.ask({"sms": list(sms), "requests": [{"type": type(request).__name__, **asdict(request)} for request in requests]})
    return [Binary(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}) for row in answer]


class _Compiler:
    """A process that reads jobs, a line of JSON each, and answers each with a line."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        atexit.register(self._end)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        too_long = threading.Timer(TIMEOUT_SECONDS, self._process.kill)
        too_long.start()
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            too_long.cancel()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")[-10_000:]
            raise AssertionError(f"the compiling process ended with {code}:\n{said}")
        answer = json.loads(line)
        assert "failed" not in answer, f"compiling failed:\n{answer['failed']}"
        return answer["rows"]

    def _end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


_compiler: _Compiler | None = None


def _specialize(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and alignment marks of a launch with these arguments, by the rules of Triton's launcher."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    marks: dict[tuple[int, ...], Any] = {}

    def describe(value: Any, path: tuple[int, ...], parameter: Any) -> Any:
        """The type of one argument; a tuple has one for each of its members."""
        if isinstance(value, tuple) and not parameter.is_constexpr:
            types = [describe(member, (*path, i), parameter) for i, member in enumerate(value)]
            return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
        specialized = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialized and type(value) is int and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, bool):
            return "u1"
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, int):
            kind, is_aligned = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
        elif isinstance(value, str):
            kind, is_aligned = value, True
        elif hasattr(value, "block_shape"):
            return _pointer_type(value)  # a tensor descriptor: nothing about it is specialised
        else:
            kind, is_aligned = _pointer_type(value), value.data_ptr() % 16 == 0
        if specialized and is_aligned and not parameter.do_not_specialize_on_alignment:
            marks[path] = [["tt.divisibility", 16]]
        return kind

    for position, parameter in enumerate(kernel.params):
        signature[parameter.name] = describe(arguments.get(parameter.name, parameter.default), (position,), parameter)
    return signature, constants, marks


def _pointer_type(tensor: Any) -> str:
    from triton.runtime.jit import mangle_type

    return mangle_type(tensor)


def _launches_of(call: str, setup: str) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Kernel, arguments and options of every launch that `call` would make."""
    import torch
    from triton.runtime import JITFunction

    from fastcnn.kernels import launching

    recorded: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []

    def record(kernel: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        named.update({key: options.pop(key) for key in list(options) if key in kernel.arg_names})
        recorded.append((kernel, named, options))

    def nhwc(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.empty(n, c, h, w, dtype=dtype).to(memory_format=torch.channels_last)

    JITFunction.run = record
    launching.is_interpreted = lambda kernel: True  # the tensors are on the CPU, and nothing will run
    names = {"torch": torch, "nhwc": nhwc}
    exec(setup, names)
    eval(call, names)
    assert recorded, f"{call} launched nothing"
    return recorded


def _read_binary(binary: bytes) -> dict[str, Any]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tools / "cuobjdump", "-sass", file.name], capture_output=True, text=True, check=True).stdout
    instructions = _INSTRUCTION.findall(sass)
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[-1]),
        "spills": len(_SPILL.findall(sass)),
        "mma": sorted(set(_MMA.findall(sass))),
        "widest_access": max(map(int, _WIDEST_ACCESS.findall(sass)), default=32),
        "opcodes": dict(Counter(opcode for opcode, _ in instructions)),
        "mma_text": [opcode + rest for opcode, rest in instructions if _MMA.fullmatch(opcode)],
    }


def _multiplying_loop(ttgir: str) -> list[str]:
    """The barriers and products of one step of the first group of warps that multiplies, in order."""
    for part in ttgir.split("partition")[1:]:
        innermost = [body.partition("scf.yield")[0] for body in part.split("scf.for")[1:]]
        for body in innermost:
            found = _BARRIERS_AND_PRODUCTS.findall(body)
            if "warp_group_dot" in found:
                return found
    return []


def _compile(job: dict[str, Any]) -> list[dict[str, Any]]:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows = []
    for index, request in enumerate(job["requests"]):
        if request["type"] == "CallRequest":
            launches = _launches_of(request["call"], request["setup"])
        else:
            kernel = getattr(importlib.import_module(request["module"]), request["kernel"])
            options = {"num_warps": request["num_warps"], "num_stages": request["num_stages"], **request["options"]}
            launches = [(kernel, request["arguments"], options)]
        for kernel, arguments, options in launches:
            signature, constants, marks = _specialize(kernel, arguments)
            for sm in job["sms"]:
                source = ASTSource(kernel, signature, constants, marks)
                compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
                figures = _read_binary(compiled.asm["cubin"])
                about = {"request": index, "kernel": kernel.__name__, "sm": sm, "multiplying_loop": _multiplying_loop(compiled.asm["ttgir"])}
                rows.append({**about, **figures, "shared": compiled.metadata.shared, "num_warps": compiled.metadata.num_warps})
    return rows


def _serve() -> None:
    """Answers jobs until there are no more; whatever a compiler prints goes to stderr, so that it cannot stand between two answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"rows": _compile(json.loads(line))}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
