"""The same inputs give the same bytes: in another process, with other hash seeds, from another folder, and as a process's second export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from export_networks import EXPORTERS, SUFFIX

_SCRIPT = """
import subprocess
import sys
import types
sys.path.insert(0, sys.argv[1])
from export_networks import EXPORTERS, SUFFIX, example, small
from fastcnn.export import runtimes
from fresh_processes import starting_them_forked
if sys.argv[2] == "forked":
    runtimes.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": starting_them_forked(subprocess.Popen)})
for folder in sys.argv[3:]:
    for format_, export in EXPORTERS.items():
        export(small(), f"{folder}/model{SUFFIX[format_]}", example(), labels=list("abcd"))
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """The second one checks its archives in processes of their own, as a user's does."""
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    helpers = str(Path(__file__).resolve().parents[1])
    for seed, checks, into in (("1", "forked", folders[:2]), ("2", "plain", folders[2:])):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-P", "-c", _SCRIPT, helpers, checks, *map(str, into)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=into[0], env=environment, check=False)
        assert process.returncode == 0, process.stderr
    for format_ in EXPORTERS:
        first, *others = [(folder / f"model{SUFFIX[format_]}").read_bytes() for folder in folders]
        assert [other == first for other in others] == [True, True], format_
