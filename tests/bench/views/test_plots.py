from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from fastcnn.bench.views import plots, units


def test_plot_is_alone_in_its_names_and_takes_the_colours_of_the_page() -> None:
    rows = [plots.Bar("a<b", 2.0, "x.0", 1.5, 2.5, emphasis=True), plots.Bar("c", 1.0, "x.1")]
    svg = plots.bars(rows, units.plain, "images/s", 'a "title" & more', key="k1")
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert {"a<b", "c", "2.00", "1.00", "images/s"} <= set(texts)
    title = next(element for element in root if element.tag.endswith("}title"))
    assert (title.text, title.get("id")) == ('a "title" & more', root.get("aria-labelledby"))
    assert "var(--ours)" in svg
    assert "var(--peer)" in svg
    assert not re.search(r"#0102[0-9a-f]{2}", svg)
    assert "<style" not in svg
    assert all(element.get("id", "k1").startswith("k1") for element in root.iter())
    drawn = plots.coloured(svg, dict.fromkeys(plots.COLOURS.values(), "#abcdef"))
    assert "var(" not in drawn


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("torch_compile_max_autotune", ["torch_compile_max_autotune"]),
        ("fastcnn_file_onnxruntime_cuda", ["fastcnn_file_onnxruntime_", "cuda"]),
        ("weights and activations channels_last", ["weights and activations", "channels_last"]),
        ("bias, residual add and ReLU in the convolution's kernel and more", ["bias, residual add and", "ReLU in the …"]),
        ("x" * 90, ["x" * 25 + "…"]),
        ("", [""]),
    ],
)
def test_long_names_stand_in_two_lines(name: str, lines: list[str]) -> None:
    svg = plots.bars([plots.Bar(name, 1.0, "x.0")], units.plain, "ms", "title", key="k")
    texts = [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]
    assert not [line for line in lines if line and line not in texts]
