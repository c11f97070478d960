"""Compiling in other processes, for a GPU that is not here: in a process of its own, for in this one Triton
interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Hopper())

from fastcnn.engines.triton.compile_ahead import compile_jobs, missing_jobs, note_jobs
from fastcnn.kernels import ConvConfig, Convolution, GroupedConv, PoolWindow, concat_relu, conv2d_bias_relu, conv2d_group, max_pool2d, pack_weight
from fastcnn.kernels.launching import instead_of_launching

def picture(channels): return torch.empty(1, channels, 8, 8, dtype=torch.float16, memory_format=torch.channels_last)

x, weight = picture(32), pack_weight(torch.empty(64, 32, 3, 3, dtype=torch.float16))
small = ConvConfig(64, 32, 32, 4, 2)
calls = [
    lambda: max_pool2d(x, PoolWindow(3, 2), out=picture(32)[:, :, :3, :3].contiguous(memory_format=torch.channels_last)),
    lambda: conv2d_bias_relu(Convolution(x, weight, None, padding=1), out=picture(64), config=small),
    lambda: conv2d_bias_relu(Convolution(x, weight, None, padding=1), out=picture(64), config=small),
    lambda: conv2d_bias_relu(Convolution(x, weight, None, padding=1), out=picture(64), split_k=2, config=small),
    lambda: conv2d_bias_relu(Convolution(x, weight, None, padding=7), out=picture(64)),
    lambda: concat_relu([x, x], None, True, out=picture(64)),
    lambda: conv2d_group([GroupedConv(Convolution(x, weight, None, padding=1), picture(64))] * 2, small),
]
jobs = note_jobs(calls)
assert [job.name for job in jobs] == [
    "_pool2d_kernel", "conv2d_kernel", "conv2d_kernel", "sum_parts_kernel", "_concat_relu_kernel", "_conv2d_group_kernel"
], jobs
assert len(missing_jobs([*jobs, *jobs])) == 6
assert compile_jobs(jobs, 0.0) == 0
assert compile_jobs(jobs, 300.0) == 6
assert missing_jobs(jobs) == []

# What a launch looks for is what lies there.
hits = []
triton.knobs.compilation.listener = lambda *, cache_hit, **others: hits.append(cache_hit)
with instead_of_launching(lambda kernel, grid, arguments, options: kernel.warmup(*arguments, grid=grid, **options)):
    for call in (*calls[:4], *calls[5:]):
        call()
assert hits == [True] * 6, hits
assert triton.knobs.runtime.jit_cache_hook is None
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core: there is nothing to gain")
def test_launches_find_what_other_processes_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300, check=False)

    assert done.stdout == "fine\n", done.stderr
