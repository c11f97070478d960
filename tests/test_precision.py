"""PyTorch's switches belong to the process: threads with different wishes take turns, and none sees the other's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from graph_support import images, net
from torch import Tensor, nn

import fastcnn
from fastcnn.precision import Precision, _Switches, exact_float32, float32_products


def tf32_is_on() -> bool:
    """Read from both sets of switches; PyTorch refuses where they disagree."""
    new = torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cudnn.allow_tf32 == new
    return new


def run(*works: Callable[[], None]) -> None:
    """All at once, each in a thread of its own; what one raises is raised here."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def test_threads_with_different_wishes_never_see_each_others() -> None:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32
    entered = []

    def work(tf32: bool) -> None:
        for _ in range(15):
            with float32_products(tf32=tf32):
                entered.append(tf32)
                for _ in range(3):
                    assert tf32_is_on() == tf32
                    time.sleep(0.001)
                # As in parity: the reference is exact, whatever the candidate around it may do.
                with float32_products(tf32=not tf32):
                    assert tf32_is_on() != tf32
                    time.sleep(0.001)
                assert tf32_is_on() == tf32

    run(*(lambda tf32=tf32: work(tf32) for tf32 in (False, True, False, True)))
    assert entered.count(True) == entered.count(False) == 30
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32) == before


def test_threads_with_the_same_wish_run_side_by_side() -> None:
    together = threading.Barrier(3, timeout=60)

    def work() -> None:
        with exact_float32():
            together.wait()

    run(work, work, work)


def test_an_error_inside_leaves_the_way_free() -> None:
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), float32_products(tf32=True), exact_float32():
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == before

    def work() -> None:
        with float32_products(tf32=True):
            assert tf32_is_on()

    run(work)


def test_a_thread_that_waits_for_its_own_worker_gets_a_warning_instead_of_hanging(caplog: pytest.LogCaptureFixture) -> None:
    switches = _Switches(patience=0.05)

    def worker() -> None:
        with switches.set(True):
            assert tf32_is_on()

    with switches.set(False):
        run(worker)
    assert [record.message.partition(" and ")[0] for record in caplog.records] == ["another thread computes float32 products otherwise"]


def test_optimize_in_two_threads_with_different_wishes() -> None:
    seen: dict[str, set[tuple[torch.dtype, bool]]] = {"exact": set(), "tf32": set()}

    def watched(name: str) -> nn.Module:
        def forward(s: nn.Module, x: Tensor) -> Tensor:
            if type(x) is Tensor:  # not while it is traced
                seen[name].add((x.dtype, tf32_is_on()))
                time.sleep(0.002)
            return s.conv(x).mean((2, 3))

        return net(forward, conv=nn.Conv2d(3, 4, 3))

    models = {name: watched(name) for name in seen}
    example = images(2, 3, 8, 8)

    def work(name: str) -> None:
        for _ in range(3):
            module = fastcnn.optimize(models[name], example, backend="torch", allow_tf32=name == "tf32")
            assert fastcnn.verify(module, models[name], example).passed

    run(lambda: work("exact"), lambda: work("tf32"))
    assert seen["exact"] == {(torch.float64, False), (torch.float32, False)}
    assert seen["tf32"] == {(torch.float64, False), (torch.float32, True)}


def test_precision_switches_are_set_and_restored() -> None:
    def switches() -> tuple[str, bool, str]:
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, conv.fp32_precision

    before = switches()
    with Precision.tf32.switches():
        assert switches() == ("high", True, "tf32")
        with Precision.fp32.switches():
            assert switches() == ("highest", False, "ieee")
        assert switches() == ("high", True, "tf32")
    assert switches() == before
