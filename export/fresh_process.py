"""Run a TorchScript or `.pt2` file where nothing but PyTorch is loaded. A script, started by `runtimes`; it must not import fastcnn.

    python -P fresh_process.py torchscript|pt2 FILE PARENT

Standard input: the length of what follows (8 bytes, little-endian) and a list with a list of tensors per batch, one for each input, written by
torch.save; it stays open while the process PARENT lives, and this one ends with it. Standard output gets a list with a list of tensors per batch.
"""

import contextlib
import ctypes
import io
import os
import queue
import signal
import sys
import threading
import warnings

_PR_SET_PDEATHSIG = 1


def _read(count: int) -> bytes:
    parts = []
    while count and (part := os.read(0, min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _listen(received: "queue.Queue[bytes]") -> None:
    """Passes the batches on, and ends the process when the other end of the pipe is closed."""
    received.put(_read(int.from_bytes(_read(8), "little")))
    os.read(0, 1)
    os._exit(1)


def _die_with(parent: int) -> None:
    """Linux kills this process with its parent even where a library holds Python's lock; elsewhere the pipe alone tells."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    """Load the file, run every batch, write what came out."""
    format_, file, parent = sys.argv[1:]
    _die_with(int(parent))
    received: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(received,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print goes to the complaints

    import torch

    warnings.simplefilter("ignore")  # torch.jit.load says that it is deprecated
    module = torch.jit.load(file, map_location="cpu") if format_ == "torchscript" else torch.export.load(file).module()
    with torch.inference_mode():
        results = [module(*batch) for batch in torch.load(io.BytesIO(received.get()), weights_only=True)]
    assert "fastcnn" not in sys.modules, "the check must see what a user sees who has PyTorch only"
    torch.save([[result] if isinstance(result, torch.Tensor) else list(result) for result in results], answers)
    answers.flush()
    os._exit(0)  # past the finalisation, in which the listening thread and the libraries only wait for each other


if __name__ == "__main__":
    main()
