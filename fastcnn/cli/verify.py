"""`fastcnn verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcnn.cli import output
from fastcnn.cli.options import Json


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `fastcnn export` wrote.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check an exported file again, from what is stored in it: its golden input, output and digests."""
    with output.working(f"verifying {file}"):
        from fastcnn.export import verify_file

        report = verify_file(file)
    if as_json:
        output.print_json({"file": file, "parity": report})
    else:
        output.print_fields({"file": file, "parity": report.summary()})
    report.require(str(file))
