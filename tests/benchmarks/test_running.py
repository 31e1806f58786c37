"""Workloads one after the other, with programs in their place that say what they should."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from benchmarks import running
from benchmarks.figures import Figures, Result
from benchmarks.peers import Mount
from benchmarks.running import Effort, Turn, WorkloadFailedError, rows_of
from benchmarks.workloads import Rows, Workload

Measured = Generator[tuple[str, float], None, None]


def program(code: str, patience: float = 60.0) -> Measured:
    return rows_of([sys.executable, "-c", code], patience, Path("/"), {"WSFUSE_TEST": "passed on"})


def test_rows_come_as_they_are_measured() -> None:
    code = "import os; print('0.5\\tone', flush=True); print('2.25\\t' + os.environ['WSFUSE_TEST'])"
    assert list(program(code)) == [("one", 0.5), ("passed on", 2.25)]


def test_a_program_that_fails() -> None:
    rows = program("import sys; print('0.5\\tone', flush=True); sys.exit(3)")
    assert next(rows) == ("one", 0.5)
    with pytest.raises(WorkloadFailedError, match="ended with 3"):
        next(rows)


WAITS = "import os, time; print(f'{os.getpid()}\\tone', flush=True); time.sleep(1000)"


def ended(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_a_row_that_takes_too_long_ends_the_program() -> None:
    rows = list(program(WAITS, patience=0.2))
    assert rows[0][0] == "one"
    assert rows[1:] == [("", 0.2)]
    assert ended(int(rows[0][1]))


def test_nothing_is_left_when_nobody_wants_more_rows() -> None:
    with contextlib.closing(program(WAITS)) as rows:
        pid = int(next(rows)[1])
    assert ended(pid)


def nothing(directory: Path, tag: str) -> Rows:
    yield from ()


READS = Workload(nothing, ("cold", "warm"))


class Stage:
    """Peers and programs that need no mount. ``script``: what the next runs of a peer yield or raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.script: dict[str, list[list[tuple[str, float]] | Exception]] = {}
        self.order: list[str] = []
        self.said: list[str] = []
        self.figures: Figures = {}
        self.source = tmp_path
        monkeypatch.setattr(running, "warm_the_server", lambda source: None)
        monkeypatch.setattr(running, "rows_of", self._rows_of)

    def peers(self) -> dict[str, Mount]:
        return {peer: (lambda peer=peer: self._mount(peer)) for peer in self.script}  # type: ignore[misc]

    @contextlib.contextmanager
    def _mount(self, peer: str) -> Iterator[Path]:
        self.order.append(peer)
        yield self.source / peer

    def _rows_of(
        self, command: object, patience: float, directory: Path, environ: dict[str, str]
    ) -> Measured:
        rows = self.script[directory.name].pop(0)
        if isinstance(rows, Exception):
            raise rows
        yield from rows

    def run(self, round_trip: float, effort: Effort, *workloads: Workload) -> list[str]:
        turn = Turn(self.peers(), self.source, round_trip, effort, {}, self.figures, self.said.append)
        return turn.run(workloads or [READS])


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def rows(cold: float, warm: float = 0.5) -> list[tuple[str, float]]:
    return [("cold", cold), ("warm", warm)]


def test_peers_take_turns(stage: Stage) -> None:
    stage.script = {"local": [rows(1.0), rows(2.0)], "wsfuse relay": [rows(3.0), rows(4.0)]}
    assert stage.run(0.0, Effort(2, 60.0)) == []
    assert stage.order == ["local", "wsfuse relay"] * 2
    assert stage.figures["cold"] == {"local": Result([1.0, 2.0]), "wsfuse relay": Result([3.0, 4.0])}
    assert stage.figures["warm"]["local"] == Result([0.5, 0.5])


def test_what_is_slow_is_measured_once_and_so_is_sshfs_from_afar(stage: Stage) -> None:
    stage.script = {"sshfs": [rows(1.0)], "wsfuse direct": [rows(1.0)] * 3, "wsfuse relay": [rows(30.0)]}
    stage.run(0.02, Effort(3, 60.0))
    assert {peer: len(result.seconds) for peer, result in stage.figures["cold"].items()} == {
        "sshfs": 1,
        "wsfuse direct": 3,
        "wsfuse relay": 1,
    }


def test_what_was_cut_counts_as_long_as_it_was_waited_for(stage: Stage) -> None:
    stage.script = {"sshfs": [[("", 60.0)]], "wsfuse relay": [[("cold", 1.0), ("", 60.0)]]}
    stage.run(0.0, Effort(2, 60.0))
    assert stage.figures["cold"] == {"sshfs": Result([60.0], cut=True), "wsfuse relay": Result([1.0])}
    assert stage.figures["warm"] == {"wsfuse relay": Result([60.0], cut=True)}


def test_a_failure_is_told_and_the_others_go_on(stage: Stage) -> None:
    stage.script = {"wsfuse relay": [WorkloadFailedError("ended with 3")], "local": [rows(1.0)]}
    stage.run(0.0, Effort(1, 60.0))
    assert stage.figures["cold"]["wsfuse relay"] == Result(failed="ended with 3")
    assert stage.figures["cold"]["local"] == Result([1.0])
    assert running.failures({"0": stage.figures}) == ["0 ms, cold, wsfuse relay: ended with 3"]
    assert any("FAILED" in line for line in stage.said)


def test_when_time_is_up_nothing_new_is_begun(stage: Stage) -> None:
    stage.script = {"local": []}
    assert stage.run(0.0, Effort(3, 60.0, until=0.0)) == ["nothing"]
    assert stage.figures == {}


def test_less_is_done_very_far_away() -> None:
    effort = Effort(3, 60.0, until=5.0)
    assert effort.at(0.0) == effort.at(0.02) == effort
    assert effort.at(0.08) == Effort(1, 20.0, until=5.0)


def test_what_matters_most_comes_first(stage: Stage) -> None:
    def other(directory: Path, tag: str) -> Rows:
        yield from ()

    def uncached(directory: Path, tag: str) -> Rows:
        yield from ()

    asked: list[tuple[float, bool]] = []
    stage.script = {"local": [rows(1.0) for _ in range(20)]}

    @contextlib.contextmanager
    def servers(round_trip: float, cached: bool) -> Iterator[dict[str, Mount]]:
        asked.append((round_trip, cached))
        yield stage.peers()

    workloads = [
        Workload(other, ("made", "again"), writes=True),
        READS,
        Workload(uncached, ("call", "next"), cached=False),
    ]
    found, left_out = running.measure(
        servers, stage.source, workloads, [0.08, 0.0, 0.005, 0.02], Effort(1, 60.0), {}, stage.said.append
    )
    near, far = [0.0, 0.02], [0.005, 0.08]
    assert asked == [(at, True) for at in near + far] + [(0.0, False)] + [(at, True) for at in near + far]
    assert list(found) == ["80", "0", "5", "20"]
    assert list(found["0"]) == ["cold", "warm", "call", "next", "made", "again"]
    assert left_out == []
