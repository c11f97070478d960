"""Work that runs at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def run_side_by_side(calls: Sequence[Callable[[], object]], side_streams: Sequence[torch.cuda.Stream]) -> None:
    """The first call on the current stream and each other one on a side stream of its own, after what the current
    stream has before and before what follows there; captured in a CUDA graph they become branches without order.

    Args:
        side_streams: one fewer than the calls, or more; different ones.
    """
    main = torch.cuda.current_stream()
    begun: list[torch.cuda.Stream] = []
    try:
        for side, call in zip(side_streams, calls[1:], strict=False):
            side.wait_stream(main)
            begun.append(side)
            with torch.cuda.stream(side):
                call()
        calls[0]()
    finally:
        # After an error too: a capture that is left with a branch of its own cannot be ended.
        for side in begun:
            main.wait_stream(side)
