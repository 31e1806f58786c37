"""Random operations on a mount and on a plain directory show the same, step by step."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.helpers.live import Mount
from tests.helpers.posixops import Operation, Workbench, perform, tree

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = [
    b"a",
    b"b",
    b"d",
    b"d/a",
    b"d/d",
    b"d/d/c",
    b"\xff\xfe",
    b"n" * 255,
    b"n" * 256,
    b"missing/x",
    b"a/x",
]
# Nothing that a link leads to may be shared between the two directories, or lie outside them.
TARGETS = [b"a", b"d", b"d/d", b"./b", b"/nonexistent/nowhere", b"t" * 300]
paths = st.sampled_from(NAMES)
modes = st.sampled_from([0o000, 0o400, 0o600, 0o644, 0o755, 0o777, 0o1777, 0o2775, 0o4755, 0o6711])
offsets = st.integers(0, 9000)
datas = st.binary(min_size=0, max_size=64).map(lambda b: b * 40)
slots = st.integers(0, 2)
open_flags = st.builds(
    lambda access, *extra: access | sum(set(extra)),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
    *[st.sampled_from([0, flag]) for flag in (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND)],
)
xattrs = st.sampled_from(["user.one", "user.two"])

operations = st.one_of(
    st.tuples(st.just("mkdir"), st.tuples(paths, modes)),
    st.tuples(st.just("mkdir"), st.tuples(st.sampled_from([b"d", b"d/d"]), st.just(0o755))),
    st.tuples(st.just("rmdir"), st.tuples(paths)),
    st.tuples(st.just("unlink"), st.tuples(paths)),
    st.tuples(st.just("symlink"), st.tuples(st.sampled_from(TARGETS), paths)),
    st.tuples(st.just("readlink"), st.tuples(paths)),
    st.tuples(st.just("link"), st.tuples(paths, paths)),
    st.tuples(st.just("rename"), st.tuples(paths, paths)),
    st.tuples(st.just("mkfifo"), st.tuples(paths, modes)),
    st.tuples(st.just("chmod"), st.tuples(paths, modes)),
    st.tuples(st.just("truncate"), st.tuples(paths, offsets)),
    st.tuples(st.just("utime"), st.tuples(paths, st.integers(0, 2**40), st.integers(0, 2**40))),
    st.tuples(st.just("lstat"), st.tuples(paths)),
    st.tuples(st.just("stat"), st.tuples(paths)),
    st.tuples(st.just("listdir"), st.tuples(paths)),
    st.tuples(st.just("access"), st.tuples(paths, st.integers(0, 7))),
    st.tuples(st.just("setxattr"), st.tuples(paths, xattrs, st.binary(max_size=50), st.integers(0, 2))),
    st.tuples(st.just("getxattr"), st.tuples(paths, xattrs)),
    st.tuples(st.just("removexattr"), st.tuples(paths, xattrs)),
    st.tuples(st.just("open"), st.tuples(slots, paths, open_flags, modes)),
    st.tuples(st.just("open"), st.tuples(slots, paths, st.just(os.O_RDWR | os.O_CREAT), st.just(0o644))),
    st.tuples(st.just("close"), st.tuples(slots)),
    st.tuples(st.just("pread"), st.tuples(slots, st.integers(0, 9000), offsets)),
    st.tuples(st.just("pwrite"), st.tuples(slots, datas, offsets)),
    st.tuples(st.just("write"), st.tuples(slots, datas)),
    st.tuples(st.just("ftruncate"), st.tuples(slots, offsets)),
    st.tuples(st.just("fstat"), st.tuples(slots)),
    st.tuples(st.just("fchmod"), st.tuples(slots, modes)),
    st.tuples(st.just("fsync"), st.tuples(slots)),
    st.tuples(st.just("fallocate"), st.tuples(slots, offsets, st.integers(1, 9000))),
    st.tuples(st.just("copy_range"), st.tuples(slots, slots, st.integers(1, 5000), offsets, offsets)),
    st.tuples(st.just("map_and_write"), st.tuples(slots, offsets, st.binary(min_size=1, max_size=30))),
)


def machine(mounted: Path, plain: Path, uids: tuple[int | None, ...]) -> type[RuleBasedStateMachine]:
    """A state machine that works in a fresh directory below *mounted* and below *plain* each time."""
    numbers = itertools.count()

    class SameAsPlain(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            name = str(next(numbers))
            self.benches = []
            for place in (mounted, plain):
                (place / name).mkdir()
                (place / name).chmod(0o777)
                self.benches.append(Workbench(place / name))

        @rule(what=operations, uid=st.sampled_from(uids))
        def operate(self, what: tuple[str, tuple[object, ...]], uid: int | None) -> None:
            operation = Operation(*what, uid=uid)
            mounted_shows, plain_shows = (perform(bench, operation) for bench in self.benches)
            assert mounted_shows == plain_shows, operation

        @invariant()
        def same_tree(self) -> None:
            mounted_tree, plain_tree = (tree(bench) for bench in self.benches)
            assert mounted_tree == plain_tree

        def teardown(self) -> None:
            for bench in self.benches:
                bench.close()

    return SameAsPlain


def run(mounted: Path, plain: Path, uids: tuple[int | None, ...]) -> None:
    run_state_machine_as_test(
        machine(mounted, plain, uids),
        settings=settings(
            max_examples=int(os.environ.get("WSFUSE_EXAMPLES", "20")),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_same_as_a_plain_directory(live_mount: Mount, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    run(live_mount.path, plain, (None,))


def test_same_as_a_plain_directory_for_several_users(raw_mount: Mount, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    run(raw_mount.path, plain, (None, 65533, 65534))
