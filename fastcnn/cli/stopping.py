"""Ctrl-C, and SIGTERM, which service managers and schedulers send: both stop a command, which tidies up, and each has an exit code of its own."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from fastcnn.cli.exit_codes import INTERRUPTED, TERMINATED
from fastcnn.errors import Terminated

_received = False


def stop_at_sigterm() -> None:
    """Lets SIGTERM raise `Terminated` in the main thread, once: a second one must not disturb the tidying up. Where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


def say_stopped(stop: KeyboardInterrupt | None = None) -> int:
    """One line on stderr, and the exit code. `stop` is what ended the command, None where the command went on to report what it had."""
    terminated = _received or isinstance(stop, Terminated)
    print("terminated" if terminated else "interrupted", file=sys.stderr)
    return TERMINATED if terminated else INTERRUPTED
