"""The README's results come from a committed result file, and from nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bench_support import HOSTILE, report, with_precisions

from fastcnn.bench.records.load import read_result
from fastcnn.bench.views.readme import generate, main, stale
from fastcnn.bench.views.tables import to_json

ROOT = Path(__file__).parents[3]


BEGIN, END = "<!-- results of r/x.json, made by `make readme` -->\n", "<!-- end of results -->\n"


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """A README with an empty section, and the result that it names."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "x.json").write_text(to_json(report(everything=False)))
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{BEGIN}{END}\nthe rest\n")
    return path


def test_our_readme_is_what_its_result_file_gives() -> None:
    assert stale(ROOT / "README.md") == []


def test_our_readme_shows_every_row_with_its_machine_and_date() -> None:
    text = (ROOT / "README.md").read_text()
    name = re.search(r"<!-- results of (\S+), made", text)
    assert name is not None
    result = read_result(ROOT / name[1])
    section = text[name.start() :].partition("<!-- end of results -->")[0]
    assert result.report.environment["cpu"]["model"] in section
    assert f"torch {result.report.environment['versions']['torch']}" in section
    assert re.search(r"\b\d{1,2} [A-Z][a-z]+ 20\d\d\b", section)
    for row in result.report.groups[0].timed():
        summary = row.summary()
        assert summary is not None
        (line,) = [line for line in section.splitlines() if line.strip("| *").startswith(f"`{row.name}`")]
        assert f"{summary.p50 * 1e3:.1f}\u202fms" in line


def test_write_then_check(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(readme), "--check"]) == 1
    assert "run make readme" in capsys.readouterr().err
    assert main([str(readme), "--write"]) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n" + BEGIN)
    assert text.endswith(END + "\nthe rest\n")
    assert "4 March 2026" in text
    assert "| **`fastcnn`** | " in text
    assert "| `openvino` | " in text
    assert "cheat" not in text
    assert main([str(readme), "--check"]) == 0
    assert main([str(readme), "--write"]) == 0
    assert readme.read_text() == text


def test_precisions_are_a_table_of_their_own(readme: Path) -> None:
    assert "| float32 |" not in generate(readme).text
    (readme.parent / "r" / "x.json").write_text(to_json(with_precisions(report(everything=False))))
    lines = generate(readme).text.splitlines()
    start = lines.index("| inception_v3, batch 1 | row | speed against openvino | size | relative error | agreement |")
    assert [line.split(" | ")[0].strip("| ") for line in lines[start + 2 : start + 5]] == ["float32", "bfloat16", "INT8"]
    assert "| `fastcnn_int8_openvino` |" in lines[start + 4]
    assert lines[start + 4].endswith("| 24.8\u202fMB | 3.8e-2 | 98\u202f% |")


def test_pictures_are_svg_with_colours_of_their_own(readme: Path) -> None:
    main([str(readme), "--write"])
    pictures = sorted(readme.parent.glob("r/*.svg"))
    assert [path.name for path in pictures] == [f"x-batch-{batch}-{theme}.svg" for batch in (1, 8) for theme in ("dark", "light")]
    for path in pictures:
        assert f"r/{path.name}" in readme.read_text()
        root = ET.fromstring(path.read_text())
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert "var(" not in path.read_text()
    assert pictures[0].read_text() != pictures[1].read_text()


@pytest.mark.parametrize("what", ["figure", "picture", "missing picture"])
def test_what_was_changed_by_hand_is_found(readme: Path, what: str) -> None:
    main([str(readme), "--write"])
    picture = readme.parent / "r" / "x-batch-1-dark.svg"
    if what == "figure":
        readme.write_text(re.sub(r"\d\.\d\d×", "9.99×", readme.read_text(), count=1))
    elif what == "picture":
        picture.write_text(picture.read_text().replace(">fastcnn<", ">slowcnn<"))
    else:
        picture.unlink()
    (problem,) = stale(readme)
    assert str(readme if what == "figure" else picture) in problem


def test_date_of_the_commit_stands_in_for_a_missing_one(readme: Path) -> None:
    made = report(everything=False)
    made.environment["date"] = None  # type: ignore[index]
    (readme.parent / "r" / "x.json").write_text(to_json(made))
    assert "2 threads. fastcnn" in generate(readme).text  # no checkout here: there is no date to be had
    when = {"GIT_AUTHOR_DATE": "2025-07-08T12:00:00+0000", "GIT_COMMITTER_DATE": "2025-07-08T12:00:00+0000"}
    for command in (["init", "-q"], ["add", "r/x.json"], ["-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-q", "-m", "result"]):
        subprocess.run(["git", "-C", str(readme.parent), *command], check=True, env={**os.environ, **when})
    assert "2 threads. 8 July 2025. fastcnn" in generate(readme).text


def test_names_cannot_break_the_table(readme: Path) -> None:
    made = report((1,), everything=False)
    made.groups[0].rows[0].name = f"a|b {HOSTILE}"
    (readme.parent / "r" / "x.json").write_text(to_json(made))
    table = [line for line in generate(readme).text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert all(line.count("`") == 2 for line in table[2:])  # whatever is between them is shown as it stands


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# no section\n", "has no section for results"),
        (BEGIN.replace("x.json", "none.json") + END, "none.json"),
        (BEGIN.replace("x.json", "bad.json") + END, "bad.json is not JSON"),
    ],
)
def test_what_cannot_be_made_ends_with_2(readme: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (readme.parent / "r" / "bad.json").write_text("no")
    readme.write_text(text)
    assert main([str(readme), "--write"]) == 2
    assert said in capsys.readouterr().err
    assert readme.read_text() == text
