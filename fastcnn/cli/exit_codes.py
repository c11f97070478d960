"""What the command line answers with besides its output."""

from __future__ import annotations

DONE = 0
# The result does not compute what its reference computes, a threshold was missed, or a picture has no answer.
CHECK_FAILED = 1
# The request could not be met: unknown name or option, a file or folder that cannot be read or written.
BAD_REQUEST = 2
# A defect of fastcnn itself; `--debug` shows the traceback.
DEFECT = 3
# Ctrl-C; shells say 128 + SIGINT.
INTERRUPTED = 130
# SIGTERM; shells say 128 + SIGTERM.
TERMINATED = 143
# The reader of the output went away, as in `fastcnn list | head -1`; shells say 128 + SIGPIPE.
BROKEN_PIPE = 141
