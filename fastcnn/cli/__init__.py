"""The command line. `main` is the installed `fastcnn` command and `python -m fastcnn`; one module per command, joined in `fastcnn.cli.app`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on `sys.argv` and leave with one of the exit codes of `fastcnn.cli.exit_codes`."""
    from fastcnn.cli.stopping import say_stopped, stop_at_sigterm

    stop_at_sigterm()
    try:
        from fastcnn.cli.app import app

        app()
    except KeyboardInterrupt as stop:  # during the import above; a running command is handled in `fastcnn.cli.app`
        sys.exit(say_stopped(stop))
