"""From figures to a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.figures import Result, Verdict, keep, kept_figures, milliseconds, ratio, verdict
from benchmarks.workloads import WORKLOADS

COLD, WARM, UNTAR = "git status, cold", "git status, warm", "untar 1,100 files"


def results(local: float, sshfs: float, direct: float, relay: float) -> dict[str, Result]:
    values = {"local": local, "sshfs": sshfs, "wsfuse direct": direct, "wsfuse relay": relay}
    return {peer: Result([seconds]) for peer, seconds in values.items()}


def test_what_counts_is_the_median() -> None:
    assert Result([60.0, 1.0, 55.0]).median == 55.0


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0"), (0.02, "20"), (0.0005, "0.5")])
def test_the_name_of_a_distance(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("ours", "base", "text"),
    [
        (Result([1.0]), Result([4.0]), "0.25"),
        (Result([1.0]), Result([4.0], cut=True), "<0.25"),
        (Result([8.0], cut=True), Result([4.0]), ">2"),
        (Result([512.4]), Result([2.0]), "256"),
        (Result([8.0], cut=True), Result([8.0], cut=True), "None"),
        (Result([8.0]), None, "None"),
        (Result([8.0]), Result(failed="it broke"), "None"),
        (Result(failed="it broke"), Result([8.0]), "None"),
    ],
)
def test_ratios_know_what_was_cut(ours: Result, base: Result | None, text: str) -> None:
    assert str(ratio(ours, base)) == text


@pytest.mark.parametrize(
    ("row", "at", "found", "expected"),
    [
        (COLD, "20", results(0.01, 50, 1.0, 1.5), Verdict("0.03 x sshfs", "yes", True)),
        (COLD, "20", results(0.01, 50, 1.0, 2.0), Verdict("0.03 x sshfs", "no: relay 0.04", False)),
        (COLD, "0", results(0.01, 1, 0.5, 0.8), Verdict("0.7 x sshfs", "no: relay 0.8", False)),
        (COLD, "80", results(0.01, 50, 100, 100), Verdict()),
        (WARM, "20", results(0.01, 50, 0.015, 0.03), Verdict("2 x local", "no: relay 3", False)),
        (WARM, "0", results(0.1, 1, 0.1, 0.1), Verdict("0.7 x sshfs; 1.5 x local", "yes", True)),
        (WARM, "0", results(0.1, 0.1, 0.1, 0.2), Verdict(
            "0.7 x sshfs; 1.5 x local", "no: direct 1, relay 2; relay 2", False)),
        (UNTAR, "20", results(0.1, 100, 90, 1.0), Verdict("0.02 x sshfs later", "not yet: direct 0.9", True)),
        (UNTAR, "20", results(0.1, 100, 1.0, 1.0), Verdict("0.02 x sshfs later", "yes", True)),
        (UNTAR, "0", results(0.1, 1, 0.9, 0.1), Verdict("0.7 x sshfs", "no: direct 0.9", False)),
        ("pip install --target", "20", results(1, 1, 9, 9), Verdict()),
        ("no such row", "0", results(1, 1, 9, 9), Verdict()),
    ],
)  # fmt: skip
def test_what_is_asked_and_kept(row: str, at: str, found: dict[str, Result], expected: Verdict) -> None:
    assert verdict(row, found, at) == expected


def test_a_bound_is_enough_to_keep_a_limit_but_not_by_ourselves() -> None:
    found = results(0.01, 100, 1.0, 1.0)
    found["sshfs"].cut = True
    assert verdict(COLD, found, "20").answer == "yes"
    found["wsfuse relay"] = Result([50.0])
    assert verdict(COLD, found, "20") == Verdict("0.03 x sshfs", "open: relay <0.5", True)
    found = results(0.01, 100, 1.0, 1.0)
    found["wsfuse relay"].cut = True
    assert verdict(COLD, found, "20") == Verdict("0.03 x sshfs", "no: relay >0.01", False)


def test_what_failed_is_not_kept_and_what_is_missing_not_judged() -> None:
    found = results(0.01, 100, 1.0, 1.0)
    found["wsfuse direct"] = Result([1.0], failed="it broke")
    assert verdict(COLD, found, "20") == Verdict("0.03 x sshfs", "no: direct failed", False)
    assert verdict(UNTAR, found, "20").kept is False  # not even later
    del found["wsfuse direct"], found["sshfs"]
    assert verdict(COLD, found, "20") == Verdict("0.03 x sshfs", "", True)


def test_limits_are_for_rows_that_exist() -> None:
    rows = [row for workload in WORKLOADS for row in workload.rows]
    assert len(rows) == len(set(rows))
    for workload in WORKLOADS:
        assert {*workload.far, *workload.local} <= set(workload.rows)


def test_figures_come_back_from_a_file(tmp_path: Path) -> None:
    found = {"20": {COLD: results(1, 2, 3, 4)}, "80": {WARM: {"sshfs": Result([9.0], True, "it broke")}}}
    keep(tmp_path / "figures.json", found, {"rounds": 3})
    assert kept_figures(tmp_path / "figures.json") == found
    assert '"cores"' in (tmp_path / "figures.json").read_text()
