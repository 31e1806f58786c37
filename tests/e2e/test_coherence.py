"""Two mounts and a writer behind them: whatever one does, the others see as soon as they have been told, and never
anything older again."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.helpers.live import Mount, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(900)]

_markers = itertools.count()


class Places:
    """The same directory, seen from the server and through each mount."""

    def __init__(self, source: Path, *mounts: Path) -> None:
        self.source = source
        self.mounts = mounts
        self.all = (source, *mounts)

    def told(self) -> None:
        """Until every mount has been told of everything that has happened on the server so far.

        News travel in order: a mount that is told of a name that it knew not to exist has been told of all before.
        """
        name = f"marker{next(_markers)}"
        for mount in self.mounts:
            assert not (mount / name).exists()
        yield_point = self.source / name
        yield_point.touch()
        for mount in self.mounts:
            wait_for((mount / name).exists, f"{mount} has been told")
        yield_point.unlink()
        for mount in self.mounts:
            wait_for(lambda mount=mount: not (mount / name).exists(), f"{mount} has been told")


def shown(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen below *directory*."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(directory):
        for name in [*names, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            data: object = None
            if stat.S_ISREG(status.st_mode):
                data = Path(path).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                data = os.readlink(path)
            size = status.st_size if not stat.S_ISDIR(status.st_mode) else 0
            found[os.path.relpath(path, directory)] = (
                kind, stat.S_IMODE(status.st_mode), size, status.st_nlink, status.st_mtime_ns, data,
            )  # fmt: skip
    return found


NAMES = ["a", "b", "d/a", "d/b", "d/e/a", "e/a", "d/e", "d/f"]
paths = st.sampled_from(NAMES)
datas = st.binary(max_size=24)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    os.replace(fresh, path)


def _modify(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


operations = st.one_of(
    st.tuples(st.just(_write), paths, datas),
    st.tuples(st.just(_append), paths, datas),
    st.tuples(st.just(_replace), paths, datas),
    st.tuples(st.just(_modify), paths, datas),
    st.tuples(st.just(lambda path, _: path.unlink()), paths, st.none()),
    st.tuples(st.just(lambda path, _: path.mkdir()), paths, st.none()),
    st.tuples(st.just(lambda path, _: path.rmdir()), paths, st.none()),
    st.tuples(st.just(lambda path, _: shutil.rmtree(path)), paths, st.none()),
    st.tuples(st.just(lambda path, mode: path.chmod(mode)), paths, st.sampled_from([0o600, 0o644, 0o755])),
    st.tuples(st.just(lambda path, size: os.truncate(path, size)), paths, st.integers(0, 40)),
    st.tuples(st.just(lambda path, target: path.symlink_to(target)), paths, st.sampled_from(["a", "d", "x"])),
)
two_paths = st.tuples(st.sampled_from([os.rename, os.link, os.replace]), paths, paths)


def machine(places: Places) -> type[RuleBasedStateMachine]:
    """A state machine that starts with an empty directory each time."""
    numbers = itertools.count()

    class Coherent(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            name = f"case{next(numbers)}"
            (places.source / name).mkdir()
            for inner in ("d", "d/e", "e"):
                (places.source / name / inner).mkdir()
            for mount in places.mounts:
                wait_for((mount / name / "e").exists, "the mount has been told")
            self.here = Places(places.source / name, *(mount / name for mount in places.mounts))
            for directory in self.here.all:
                shown(directory)

        def step(self, who: int, work: Callable[[Path], object]) -> None:
            with contextlib.suppress(OSError):
                work(self.here.all[who])

        @rule(who=st.integers(0, 2), what=operations)
        def operate(self, who: int, what: tuple[Callable[[Path, object], object], str, object]) -> None:
            function, path, argument = what
            self.step(who, lambda place: function(place / path, argument))

        @rule(who=st.integers(0, 2), what=two_paths)
        def move(self, who: int, what: tuple[Callable[[Path, Path], object], str, str]) -> None:
            function, path, other = what
            self.step(who, lambda place: function(place / path, place / other))

        @rule(who=st.integers(1, 2), path=paths)
        def look(self, who: int, path: str) -> None:
            """Reading fills caches at moments that the test does not wait for."""

            def read(place: Path) -> None:
                file = place / path
                os.listdir(file.parent)
                file.read_bytes()

            self.step(who, read)

        @invariant()
        def everybody_sees_the_same(self) -> None:
            self.here.told()
            truth = shown(self.here.source)
            for mount in self.here.mounts:
                assert shown(mount) == truth, mount

        def teardown(self) -> None:
            shutil.rmtree(self.here.source)

    return Coherent


@pytest.fixture
def places(live_mount: Mount, second_mount: Mount) -> Places:
    return Places(live_mount.source, live_mount.path, second_mount.path)


def test_everybody_sees_the_same_after_being_told(places: Places) -> None:
    run_state_machine_as_test(
        machine(places),
        settings=settings(
            max_examples=int(os.environ.get("WSFUSE_EXAMPLES", "15")),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_kernel_answers_what_it_was_told_before(live_mount: Mount) -> None:
    """Looking again at an unchanged tree asks the daemon for nothing but what every opening costs."""
    for number in range(20):
        (live_mount.source / f"d{number}").mkdir()
        (live_mount.source / f"d{number}/file").write_bytes(b"x")
    wait_for((live_mount.path / "d19/file").exists, "the mount has been told")

    def walk() -> int:
        return sum(len(names) + len(files) for _, names, files in os.walk(live_mount.path))

    def asked() -> int:
        said = json.loads(
            run("stats", str(live_mount.path).rpartition("/")[0], "--json", env=live_mount.env).stdout
        )
        return sum(row["count"] for row in said["operations"].values())

    assert walk() == 40
    before = asked()
    for _ in range(50):
        assert walk() == 40
    assert asked() - before < 100  # and not 50 times the 41 files and directories


def test_an_open_file_that_somebody_removes_goes_on(live_mount: Mount) -> None:
    """Also one that the server was not told of, because its data were here already."""
    for number in range(5):
        (live_mount.source / f"f{number}").write_bytes(b"before %d" % number)
    wait_for((live_mount.path / "f4").exists, "the mount has been told")
    for number in range(5):
        assert (live_mount.path / f"f{number}").read_bytes() == b"before %d" % number
    with (
        (live_mount.path / "f0").open("rb", buffering=0) as first,
        (live_mount.path / "f1").open("rb") as second,
    ):
        (live_mount.source / "f0").unlink()
        os.replace(live_mount.source / "f2", live_mount.source / "f1")
        wait_for(lambda: not (live_mount.path / "f0").exists(), "the mount has been told")
        wait_for(lambda: not (live_mount.path / "f2").exists(), "the mount has been told")
        assert first.read() == b"before 0"
        assert os.fstat(first.fileno()).st_nlink == 0
        assert second.read() == b"before 1"
        assert (live_mount.path / "f1").read_bytes() == b"before 2"


def test_an_open_file_that_somebody_changes_shows_the_change(live_mount: Mount) -> None:
    (live_mount.source / "f").write_bytes(b"one")
    wait_for((live_mount.path / "f").exists, "the mount has been told")
    assert (live_mount.path / "f").read_bytes() == b"one"
    with (live_mount.path / "f").open("rb", buffering=0) as file:
        with (live_mount.source / "f").open("r+b") as other:
            other.write(b"two, longer")
        wait_for(lambda: os.fstat(file.fileno()).st_size == 11, "the mount has been told")
        assert file.read() == b"two, longer"


def test_a_flood_of_changes_is_seen_in_the_end(live_mount: Mount) -> None:
    """More than the kernel queues for the engine: it then says that everything may be another."""
    for number in range(100):
        (live_mount.source / f"f{number}").write_bytes(b"0")
    wait_for((live_mount.path / "f99").exists, "the mount has been told")
    for number in range(100):
        assert (live_mount.path / f"f{number}").read_bytes() == b"0"
    for turn in range(1, 200):
        for number in range(100):
            (live_mount.source / f"f{number}").write_bytes(b"%d" % turn)
    for number in range(100):
        path = live_mount.path / f"f{number}"
        wait_for(lambda path=path: path.read_bytes() == b"199", "the mount has been told")
