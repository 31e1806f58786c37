"""Fixtures of every test: real mounts, made once and shared, each test in a directory of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import live

HAS_FUSE = os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is not None


def pytest_configure() -> None:
    """An engine may write nothing but its workspaces; while it is measured, what was covered as well."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        where = os.path.abspath(os.environ.get("COVERAGE_FILE", ".coverage"))
        os.environ.setdefault("WSFUSE_ENGINE_MAY_WRITE", os.path.dirname(where))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without /dev/fuse the tests that mount cannot run. In CI that is a failure, not a skip."""
    if os.path.exists("/dev/fuse") and HAS_FUSE:
        return
    if os.environ.get("CI"):
        pytest.exit("no usable /dev/fuse: the tests that mount cannot run", returncode=1)
    for item in items:
        if item.get_closest_marker("mount"):
            item.add_marker(pytest.mark.skip(reason="no usable /dev/fuse"))


_numbers = itertools.count()

SharedMount = Callable[..., live.Mount]


@pytest.fixture(scope="session")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedMount]:
    """A function that gives a mount of the shared server with the given options, mounting it the first time."""
    made: dict[tuple[str, ...], live.Mount] = {}
    with contextlib.ExitStack() as stack:
        home = tmp_path_factory.mktemp("shared")
        server: list[live.Live] = []

        def get(*options: str) -> live.Mount:
            if not server:
                server.append(stack.enter_context(live.start_server(home / "workspace", home / "home")))
            if options not in made:
                path = home / f"mount{len(made)}"
                made[options] = stack.enter_context(live.mount(server[0], path, *options))
            return made[options]

        yield get


@pytest.fixture
def place(shared_mount: SharedMount, tmp_path: Path) -> Iterator[Callable[..., live.Mount]]:
    """A function that gives this test's own directory as seen through a mount with the given options."""
    name = f"test{next(_numbers)}"
    sources: list[Path] = []

    def get(*options: str) -> live.Mount:
        mounted = shared_mount(*options)
        source = mounted.source / name
        if not sources:
            source.mkdir()
            source.chmod(0o777)
            sources.append(source)
        seen = mounted.path / name

        def told() -> bool:
            """The mount is told of what is made behind it; in a moment, not at once."""
            return seen.exists() and seen.stat().st_mode == source.stat().st_mode

        live.wait_for(told, "the mount has been told of the test's directory")
        return replace(mounted, path=seen, source=source)

    yield get
    for source in sources:
        shutil.rmtree(source, ignore_errors=True)


@pytest.fixture
def live_mount(place: Callable[..., live.Mount]) -> live.Mount:
    """A mount with default options over the direct transport."""
    return place("--transport", "direct")


@pytest.fixture
def second_mount(place: Callable[..., live.Mount]) -> live.Mount:
    """Another mount of the same directory, through the relay."""
    return place("--transport", "relay")


@pytest.fixture
def uncached_mount(place: Callable[..., live.Mount]) -> live.Mount:
    """A mount on which nothing is cached."""
    return place("--cache", "off")


@pytest.fixture
def raw_mount(place: Callable[..., live.Mount], tmp_path: Path) -> live.Mount:
    """A mount on which numeric owners pass through and every user of the machine may work, as in ``tmp_path``."""
    mounted = place("--owner", "raw", "--allow-other")
    for path in (mounted.source, tmp_path / "any"):
        for directory in path.parents[:-1]:
            directory.chmod(directory.stat().st_mode | 0o011)
    return mounted


@pytest.fixture
def mount_inside(tmp_path: Path) -> Iterator[live.Mount]:
    """A mount below the root of the very server that serves it."""
    root = tmp_path / "workspace"
    with live.start_server(root, tmp_path / "home") as server, live.mount(server, root / "inside") as mounted:
        yield mounted
