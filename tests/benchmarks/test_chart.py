"""The picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from benchmarks.chart import COLOURS, chart
from benchmarks.figures import Figures, Result

SPACE = "{http://www.w3.org/2000/svg}"
FIGURES: Figures = {
    "a < b & c": {
        "local": Result([0.01]),
        "sshfs": Result([50.0], cut=True),
        "wsfuse direct": Result([1.0]),
        "wsfuse relay": Result([2.0]),
    },
    "another": {
        "local": Result([0.001]),
        "sshfs": Result(failed="it broke"),
        "wsfuse direct": Result([0.01]),
    },
    "nothing": {"sshfs": Result(failed="it broke")},
}


def bars(text: str) -> list[ET.Element]:
    return [rect for rect in ET.fromstring(text).iter(f"{SPACE}rect") if rect.get("class") == "bar"]


def test_longer_bars_take_longer() -> None:
    found = {
        str(bar.findtext(f"{SPACE}title")): float(bar.get("width", 0)) for bar in bars(chart(FIGURES, "20"))
    }
    assert list(found) == [
        "a < b & c, sshfs: more than 50 s",
        "a < b & c, wsfuse direct: 1 s",
        "a < b & c, wsfuse relay: 2 s",
        "a < b & c, local: 0.01 s",
        "another, wsfuse direct: 0.01 s",
        "another, local: 0.001 s",
    ]
    sshfs, direct, relay, local, other, least = found.values()
    assert sshfs > relay > direct > local == other > least > 0
    assert abs((direct - local) - 2 * (other - least)) < 3  # a step of ten is as wide everywhere


def test_everything_is_named_and_within_the_picture() -> None:
    root = ET.fromstring(chart(FIGURES, "20"))
    texts = {text.text for text in root.iter(f"{SPACE}text")}
    assert {"a < b & c", "another", *COLOURS} - {"rclone"} <= texts
    assert "nothing" not in texts
    _, _, width, height = map(float, str(root.get("viewBox")).split())
    for rect in root.iter(f"{SPACE}rect"):
        x, y, wide, tall = (float(rect.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + wide <= width
        assert 0 <= y <= y + tall <= height
    assert len(list(root.iter(f"{SPACE}path"))) == 1  # what was cut off


def test_the_same_figures_give_the_same_picture() -> None:
    assert chart(FIGURES, "20") == chart(FIGURES, "20")
    assert bars(chart({"one": {"local": Result([1.0])}}, "0"))  # whose scale has one step
