"""One workload after the other, through one peer after the other, with an eye on the clock."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .figures import OURS, SSHFS, Figures, Result, milliseconds
from .mounts import abort
from .peers import Mount
from .processes import ROOT
from .workloads import Workload

#: Round trips from which on sshfs takes minutes for a row, and is measured once.
FAR: Final = 0.02
#: Round trips from which on everything is measured once, with a part of the patience.
VERY_FAR: Final = 0.05
#: Seconds of a round from which on one round is enough: what takes so long is not decided by noise.
SLOW: Final = 10.0
#: Seconds for a process that was killed to be gone, before its mount is taken to be stuck.
KILLED: Final = 5.0

Say = Callable[[str], None]


class WorkloadFailedError(RuntimeError):
    """A workload did not do what it should; the message says what it ended with."""


@dataclass(frozen=True)
class Effort:
    """How much is done for a figure. ``patience``: seconds for a row. ``until``: when on the monotonic clock nothing
    new is begun."""

    rounds: int
    patience: float
    until: float = float("inf")

    def at(self, round_trip: float) -> Effort:
        """What of it is right at that distance."""
        if round_trip < VERY_FAR:
            return self
        return Effort(1, self.patience / 3, self.until)

    @property
    def over(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self.until


def warm_the_server(source: Path) -> None:
    """Fresh mounts have nothing cached. The disk of the server is not what is compared: all of it is in memory."""
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2")
    for folder, _, files in os.walk(source):
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                with open(path, "rb", buffering=0) as file:
                    while file.read(1 << 20):
                        pass


def _kill(process: subprocess.Popen[bytes], directory: Path) -> None:
    os.killpg(process.pid, 9)
    try:
        process.wait(KILLED)
    except subprocess.TimeoutExpired:
        # It waits in the kernel for an answer that does not come, and no signal ends that.
        abort(directory)
        process.wait()


def rows_of(
    command: Sequence[object], patience: float, directory: Path, environ: dict[str, str]
) -> Generator[tuple[str, float], None, None]:
    """Run *command*, which prints a line of seconds, tab, row for each row that it has measured in *directory*, within
    *patience* seconds each. A row that is not done by then ends it: row is then empty.

    Raises WorkloadFailedError if it ends with an error.
    """
    begun = time.monotonic()
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, env={**os.environ, **environ}, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    pending = b""
    try:
        with process.stdout, selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(begun + patience - time.monotonic(), 0)):
                    yield "", patience
                    return
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    seconds, _, row = line.decode().partition("\t")
                    yield row, float(seconds)
                    begun = time.monotonic()
        if process.wait():
            raise WorkloadFailedError(f"ended with {process.returncode}")
    finally:
        if process.returncode is None:
            _kill(process, directory)


@dataclass
class Turn:
    """Workloads through peers at one distance: fills ``figures``."""

    peers: dict[str, Mount]
    source: Path
    round_trip: float
    effort: Effort
    environ: dict[str, str]
    figures: Figures
    say: Say

    def run(self, workloads: Sequence[Workload]) -> list[str]:
        """Returns the names of those for which there was no time.

        Peers take turns, so that a noisy moment hits all of them.
        """
        left_out = []
        for workload in workloads:
            done: set[str] = set()  # peers of which no more rounds are needed
            for number in range(self.effort.rounds):
                if self.effort.over:
                    if not number:
                        left_out.append(workload.name)
                    break
                for peer, mount in self.peers.items():
                    if peer not in done and self._one(workload, peer, mount):
                        done.add(peer)
        return left_out

    def _one(self, workload: Workload, peer: str, mount: Mount) -> bool:
        """One round. Returns whether another would tell nothing more."""
        rows = iter(workload.rows)
        row, spent = workload.rows[0], 0.0
        warm_the_server(self.source)
        try:
            with mount() as directory, contextlib.ExitStack() as stack:
                command = [
                    sys.executable, "-m", "benchmarks.workloads", workload.name, directory, peer.replace(" ", "-"),
                ]  # fmt: skip
                measured = rows_of(command, self.effort.patience, directory, self.environ)
                for name, seconds in stack.enter_context(contextlib.closing(measured)):
                    row = next(rows)
                    result = self._result(row, peer)
                    result.seconds.append(seconds)
                    result.cut |= not name
                    spent += seconds
                    self.say(
                        f"{milliseconds(self.round_trip):>3} ms  {row}: {peer} "
                        f"{'more than ' if not name else ''}{seconds:.3f} s"
                    )
        except (OSError, RuntimeError, subprocess.SubprocessError) as problem:
            row = next(rows, row)
            self._result(row, peer).failed = f"{problem}"
            self.say(f"{milliseconds(self.round_trip):>3} ms  {row}: {peer} FAILED: {problem}")
            return True
        far = peer == SSHFS and self.round_trip >= FAR
        return far or spent > SLOW

    def _result(self, row: str, peer: str) -> Result:
        return self.figures.setdefault(row, {}).setdefault(peer, Result())


def failures(found: dict[str, Figures]) -> list[str]:
    """Where one of our own mounts did not work."""
    return [
        f"{at} ms, {row}, {peer}: {results[peer].failed}"
        for at, figures in found.items()
        for row, results in figures.items()
        for peer in OURS
        if peer in results and results[peer].failed
    ]


Peers = AbstractContextManager[dict[str, Mount]]
Servers = Callable[[float, bool], Peers]


def measure(
    servers: Servers, source: Path, workloads: Sequence[Workload], round_trips: Sequence[float], effort: Effort,
    environ: dict[str, str], say: Say,
) -> tuple[dict[str, Figures], list[str]]:  # fmt: skip
    """Everything, what matters most first. Returns the figures of each round trip, and what there was no time for.

    *servers* takes a round trip and whether caches are on.
    """
    found: dict[str, Figures] = {milliseconds(each): {} for each in round_trips}
    left_out = []
    # Limits are for 0 and 20 ms; what is not cached is a matter of system calls, not of distance.
    by_weight = sorted(round_trips, key=lambda each: (each not in (0.0, FAR), each))
    stages = [
        (each, cached, [w for w in workloads if w.cached is cached and w.writes is writes])
        for writes, cached in ((False, True), (False, False), (True, True))
        for each in by_weight
        if cached or not each
    ]
    for each, cached, chosen in stages:
        if not chosen:
            continue
        with servers(each, cached) as peers:
            turn = Turn(peers, source, each, effort.at(each), environ, found[milliseconds(each)], say)
            left_out += [f"{name} at {milliseconds(each)} ms" for name in turn.run(chosen)]
    return found, left_out
