"""The process that compiles kernels for the other tests."""

from __future__ import annotations

import pytest

from .compiling import CallRequest, KernelRequest, compile_kernels

GOOD = CallRequest("global_avg_pool2d(nhwc(8, 64, 8, 8))", "from fastcnn.kernels import global_avg_pool2d")


def test_a_request_that_fails_says_why_and_the_next_one_works() -> None:
    with pytest.raises(AssertionError, match=r"No module named 'fastcnn.kernels.nothing'"):
        compile_kernels([KernelRequest("fastcnn.kernels.nothing", "_kernel", {})], sms=(90,))
    (binary,) = compile_kernels([GOOD], sms=(90,))
    assert binary.sm == 90


def test_a_process_that_ended_says_so_and_the_next_call_starts_another() -> None:
    with pytest.raises(AssertionError, match=r"ended with 7:\n.*last words"):
        compile_kernels([CallRequest("__import__('os').write(2, b'last words') and __import__('os')._exit(7)")], sms=(90,))
    (binary,) = compile_kernels([GOOD], sms=(90,))
    assert binary.check_resources() is None
