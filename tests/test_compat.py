"""`make compat`: files in other processes, what is said of their answers, and the page that comes of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compat import environments
from compat.environments import RUNTIMES, Runtime
from compat.files import Case, make_files, read_case
from compat.matrix import document, judge, record, run, table
from compat.runner import RUNTIMES as RUNNERS
from compat.runner import encode
from export_networks import example, small

from fastcnn.export import export_onnx

pytestmark = pytest.mark.slow  # the files of the matrix are exported

ROOT = Path(__file__).parents[1]
RUNNER = ROOT / "tools" / "compat" / "runner.py"
MODULES = {"onnxruntime": "onnxruntime", "onnx": "onnx", "openvino": "openvino", "opencv": "cv2", "tract": "tract", "tvm": "tvm"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("compat") / "small.onnx"
    export_onnx(small(), path, example())
    return read_case("float32", "small", path)


def broken(case: Case) -> Case:
    path = case.path.with_name("broken.onnx")
    path.write_bytes(case.path.read_bytes()[:-2000])
    return Case(case.column, "broken", case.opset, path, case.batches, case.expected, case.tolerance)


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_file_in_what_is_installed(kind: str, case: Case) -> None:
    if importlib.util.find_spec(MODULES[kind]) is None:
        pytest.skip(f"{MODULES[kind]} is not installed; make compat gives it an environment of its own")
    right, refused = run([sys.executable, "-P", str(RUNNER), kind], case.path.parent, [case, broken(case)])
    assert (right["verdict"], right["error"] <= case.tolerance) == ("right", True)
    assert refused["verdict"] == "refused"
    assert "\n" not in refused["reason"]
    assert str(case.path.parent) not in refused["reason"]


def test_a_process_that_dies_is_told_from_the_files_behind_it(case: Case, tmp_path: Path) -> None:
    """The stand-in for a runtime answers the first file, dies of the second and answers the third."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import json, os, sys\n"
        "for job in json.load(sys.stdin):\n"
        "    if 'second' in job['file']: print('it broke', file=sys.stderr); sys.stderr.flush(); os._exit(7)\n"
        "    print(json.dumps({'refused': job['file']}), flush=True)\n"
    )
    cases = [Case("c", name, 13, Path(name), case.batches, case.expected, case.tolerance) for name in ("first", "second", "third")]
    found = run([sys.executable, str(script)], tmp_path, cases)
    assert [one["reason"] for one in found] == ["first", "the process ended with code 7: it broke", "third"]


def test_verdicts(case: Case) -> None:
    def verdict(*answers: np.ndarray) -> dict[str, Any]:
        return judge(case, {"answers": [encode(answer) for answer in answers]})

    assert verdict(*case.expected)["verdict"] == "right"
    assert verdict(*(expected * 1.01 for expected in case.expected))["verdict"] == "coarse"
    assert verdict(*(-expected for expected in case.expected))["verdict"] == "wrong"
    assert verdict(*(expected * np.nan for expected in case.expected))["verdict"] == "wrong"
    assert verdict(*(expected[:, :2] for expected in case.expected))["reason"].startswith("it answers [")
    assert judge(case, {"refused": "no Abs of /tmp/some/place/file.onnx " + "x" * 500})["reason"].startswith("no Abs of file.onnx xxx")


def test_the_table_counts_and_gives_each_reason_once(case: Case) -> None:
    one, two = Runtime("One", "one", "1.0", ()), Runtime("Two", "two", "2.0", ())
    rows: dict[str, Any] = {
        "one-1.0": [{"verdict": "right", "error": 0.0}, {"verdict": "refused", "reason": "no Cast"}, {"verdict": "refused", "reason": "no Cast"}],
        "two-2.0": "no Node.js here",
    }
    cases = [Case("float32" if name == "a" else "float16", name, 13, Path(name), (), (), 1e-5) for name in "abc"]
    lines = table(record([one, two], cases, rows, {}))
    assert lines[:4] == ["| runtime | float32 | float16 |", "|---|---|---|", "| One 1.0 | 1/1 | 0/2 |", "| Two 2.0 | – | – |"]
    assert lines[-2:] == ["- One 1.0, float16, refused: no Cast (b, c)", "- not tried: no Node.js here (Two 2.0)"]


def test_files_are_made_once(tmp_path: Path) -> None:
    columns = {"batch of 1": (("simple_cnn",), {"batch_size": 1})}
    (made,) = make_files(tmp_path, columns)
    assert (made.path.name, made.batches[0].shape) == ("simple_cnn-batch_of_1.onnx", (1, 1, 28, 28))
    before = made.path.stat().st_mtime_ns
    assert next(make_files(tmp_path, columns)).path.stat().st_mtime_ns == before


def test_an_environment_that_cannot_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)
    node = next(one for one in RUNTIMES if one.npm)
    assert node.prepare(tmp_path) == "no Node.js here"
    assert not list(tmp_path.iterdir())
    assert len({one.name for one in RUNTIMES}) == len(RUNTIMES)
    assert all(one.npm or one.kind in RUNNERS for one in RUNTIMES)


def test_the_page_is_what_its_record_gives() -> None:
    source = max((ROOT / "bench" / "results" / "compat").glob("*.json"))
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert page == document(json.loads(source.read_text()), source.relative_to(ROOT).as_posix()), "run make compat"
