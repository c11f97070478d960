"""The command line. `main` is the installed `fastcnn` command and `python -m fastcnn`; one module per command, joined in `fastcnn.cli.app`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on `sys.argv` and leave with one of the exit codes of `fastcnn.cli.exit_codes`."""
    try:
        from fastcnn.cli.app import app

        app()
    except KeyboardInterrupt:  # during the import above; a running command is handled in `fastcnn.cli.app`
        from fastcnn.cli.exit_codes import INTERRUPTED

        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
