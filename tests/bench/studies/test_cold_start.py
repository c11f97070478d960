from __future__ import annotations

import sys

import pytest

from fastcnn.bench.studies import cold_start as module
from fastcnn.bench.studies.cold_start import ColdStartRequest, cold_start
from fastcnn.errors import BackendError

TINY = ColdStartRequest("simple_cnn", "fastcnn_torch", "cpu", "fp32", (2, 1, 28, 28), 1)


def test_fresh_process_tells_its_phases_and_memory() -> None:
    found = cold_start(TINY)
    assert list(found.phases) == ["import", "build", "first_answer"]
    assert all(seconds > 0 for seconds in found.phases.values())
    assert 2**20 < found.peak_memory_bytes < 2**33
    assert (found.allocator_peak_bytes, found.kernels) == (None, None)


def test_row_that_fails_there_says_why_in_one_line() -> None:
    with pytest.raises(BackendError, match=r"failed in a process of its own: .*no_such_row") as error:
        cold_start(ColdStartRequest("simple_cnn", "no_such_row", "cpu", "fp32", (1, 1, 28, 28), 1))
    assert "\n" not in str(error.value)


def test_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    script = f"{tmp_path}/sleeper"
    with open(script, "w") as file:
        file.write(f"#!{sys.executable}\nimport time\nprint('imported', flush=True)\ntime.sleep(60)\n")
    import os

    os.chmod(script, 0o755)
    monkeypatch.setattr(module.sys, "executable", script)
    with pytest.raises(BackendError, match="no answer within 2 s"):
        cold_start(TINY, timeout_seconds=2.0)
