"""From figures to a verdict."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report

FIGURES = {
    "git status, cold": {
        "local": [0.01],
        "sshfs": [60.0, 50.0, 55.0],
        "wsfuse direct": [1.0],
        "wsfuse relay": [2.0],
    },
    "git status, warm": {"local": [0.01], "sshfs": [50.0], "wsfuse direct": [0.03], "wsfuse relay": [0.04]},
    "untar 1,100 files": {"local": [0.1], "sshfs": [100.0], "wsfuse direct": [90.0], "wsfuse relay": [95.0]},
    "pip install --target": {"local": [0.1], "wsfuse direct": [0.2]},
}


def test_medians() -> None:
    assert report.medians(FIGURES["git status, cold"])["sshfs"] == 55.0


@pytest.mark.parametrize(
    ("row", "milliseconds", "asked", "good"),
    [
        ("git status, cold", "20", "0.03 x sshfs", True),
        ("git status, cold", "0", "0.7 x sshfs", True),
        ("git status, cold", "80", "", True),
        ("git status, warm", "20", "2 x local", False),
        ("git status, warm", "0", "1.5 x local", False),
        ("untar 1,100 files", "20", "0.02 x sshfs", True),
        ("pip install --target", "0", "", True),
    ],
)
def test_what_is_asked_and_kept(row: str, milliseconds: str, asked: str, good: bool) -> None:
    found = report.verdict(row, report.medians(FIGURES[row]), milliseconds)
    assert found[0] == asked
    assert found[2] == good
    if row.startswith("untar"):
        assert found[1].startswith("not yet")


def test_tables_show_every_row_and_peer(tmp_path: Path) -> None:
    table, fine = report.table(FIGURES, "20")
    assert not fine
    console = Console(width=200, file=(tmp_path / "out").open("w"))
    console.print(table)
    console.file.close()
    shown = (tmp_path / "out").read_text()
    assert all(row in shown for row in FIGURES)
    assert "(0.018)" in shown
    assert "| git status, cold | 0.01 s | 55 s | 1 s (0.018) |" in report.markdown({"20": FIGURES})


def test_the_chart_is_well_formed_and_longer_bars_take_longer() -> None:
    root = ET.fromstring(report.chart(FIGURES, "20"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert all(row in texts for row in FIGURES)
    bars = [
        rect for rect in root.iter(f"{space}rect") if rect.get("x") == "250" and rect.get("height") != "10"
    ]
    assert len(bars) == sum(len(values) for values in FIGURES.values())
    widths = [float(rect.get("width", 0)) for rect in bars]
    assert widths[0] > widths[1] > widths[3]  # sshfs, direct, local of the first row


def test_documents_are_changed_between_the_marks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- figures: begin -->\nstale figures\n<!-- figures: end -->\nafter\n")
    monkeypatch.setattr(report, "_DOCS", tmp_path)
    report.into_docs({"20": FIGURES})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("-->\nafter\n")
    assert "stale figures" not in text
    assert "git status, cold" in text
    assert (tmp_path / "images/benchmarks.svg").exists()
