"""Tables for the terminal and for the documents."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.figures import Figures, Result

FIGURES: Figures = {
    "git status, cold": {
        "local": Result([0.01]),
        "sshfs": Result([60.0, 50.0, 55.0]),
        "wsfuse direct": Result([1.0]),
        "wsfuse relay": Result([2.0]),
    },
    "untar 1,100 files": {
        "local": Result([0.1]),
        "sshfs": Result([100.0], cut=True),
        "wsfuse direct": Result([90.0]),
        "wsfuse relay": Result([100.0], cut=True),
    },
    "pip install --target": {"local": Result([0.1]), "wsfuse direct": Result(failed="it broke")},
}


def test_tables_show_every_row_and_peer() -> None:
    table, fine = report.table(FIGURES, "20")
    assert not fine
    out = io.StringIO()
    Console(width=220, file=out).print(table)
    shown = out.getvalue()
    assert all(row in shown for row in FIGURES)
    for text in (
        "1 s (0.018 | 100)",
        ">100 s (? | >1000)",
        "90 s (<0.9 | 900)",
        "failed",
        "no: relay",
    ):
        assert text in shown


def test_tables_for_the_documents() -> None:
    text = report.markdown({"20": FIGURES, "80": {}})
    assert "**Round trip of 20 ms**" in text
    assert "80" not in text
    assert (
        "| workload | local | sshfs | wsfuse direct | wsfuse relay |\n| --- | ---: | ---: | ---: | ---: |\n"
        in text
    )
    assert "| git status, cold | 0.01 s | 55 s | 1 s (0.018) | 2 s (0.036) |\n" in text
    assert "| untar 1,100 files | 0.1 s | >100 s | 90 s (<0.9) | >100 s |\n" in text
    assert "| pip install --target | 0.1 s |  | failed |  |\n" in text


def test_documents_are_changed_between_the_marks_only(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- figures: begin -->\nstale figures\n<!-- figures: end -->\nafter\n")
    report.into_docs({"20": FIGURES}, "Once.", tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("-->\nafter\n")
    assert "stale figures" not in text
    assert "Once.\n\n**Round trip" in text
    assert (tmp_path / "images/benchmarks.svg").exists()
    report.into_docs({"20": FIGURES}, "Once.", tmp_path)
    assert page.read_text() == text


def test_a_document_without_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- figures: begin -->\nand no end\n")
    with pytest.raises(ValueError, match="figures: end"):
        report.insert("figures", "text", tmp_path)
    assert page.read_text() == "before\n<!-- figures: begin -->\nand no end\n"


@pytest.mark.parametrize("mark", ["figures", "coherence", "bigtree"])
def test_our_document_has_the_marks(mark: str, tmp_path: Path) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text((report.DOCS / "performance.md").read_text())
    report.insert(mark, "a figure that nobody measured", tmp_path)
    assert "a figure that nobody measured" in copy.read_text()
