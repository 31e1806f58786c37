"""The escape corpus: every known way to leave a workspace by a name, tried with every request that has one.

The canary lies beside the workspace. It must not be seen in any answer, and must be afterwards what it was.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.engine.handles import HandleTable
from jupyter_wsfuse.engine.operations import Context, execute
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.errors import errno_name
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Ref
from tests.helpers.arena import (
    DEPTH,
    Arena,
    Make,
    by_handle,
    by_name,
    by_path,
    is_outside,
    kinds_of,
    kinds_with,
)
from tests.helpers.engineproc import EngineProcess
from tests.helpers.fuzzing import examples
from tests.helpers.rawclient import RawClient, disconnect_all
from tests.helpers.workspace import needs_root

pytestmark = pytest.mark.slow


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = Arena(tmp_path)
    yield arena
    arena.close()


@pytest.fixture
def engine(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """Not confined: what is tested is the resolution of names alone, not what would catch its mistakes."""
    tenants = {"default": {"root": str(arena.workspace), "follow_roots": [str(arena.shared)]}}
    engine = EngineProcess(arena.workspace, tmp_path_factory.mktemp("state"), tenants=tenants, landlock=False)
    yield engine
    assert engine.stop() == 0
    assert "Traceback" not in engine.log, engine.log
    assert " ERROR " not in engine.log, engine.log


@pytest.fixture(autouse=True)
async def no_connection_is_left() -> AsyncIterator[None]:
    yield
    await disconnect_all()


class Attacker:
    """One session that tries, and looks at what it is answered."""

    def __init__(self, arena: Arena, client: RawClient) -> None:
        self.arena = arena
        self.client = client
        self.answered = 0
        self.errors: dict[str, int] = {}

    async def all(self, makes: Iterable[Make]) -> list[tuple[Make, Any]]:
        """Send all at once. The answers: a reply, or the number of an error."""
        makes = list(makes)
        seqs = [self.client.send(make, payload=b"planted" if make.func is m.Write else b"") for make in makes]
        return [(make, await self._answer(make, seq)) for make, seq in zip(makes, seqs, strict=True)]

    async def _answer(self, make: Make, seq: int) -> Any:
        self.answered += 1
        try:
            reply, payload = await self.client.answer(seq)
        except OSError as exc:
            error = exc
        else:
            return await self._succeeded(make, reply, payload)
        assert str(self.arena.base) not in str(error), "an answer names a path of the server"
        assert error.errno is not None
        name = errno_name(error.errno)
        self.errors[name] = self.errors.get(name, 0) + 1
        return error.errno

    async def _succeeded(self, make: Make, reply: Any, payload: bytes) -> Any:
        assert not self.arena.leaks(reply, payload), (make, reply)
        if isinstance(reply, m.OpenReply):
            await self._look(make, reply.handle)
        return reply

    async def _look(self, make: Make, handle: int) -> None:
        """What a handle that was given out leads to."""
        for look in (
            Make(m.Read, handle=handle, offset=0, size=4096),
            Make(m.ReadDir, handle=handle, cookie=0, limit=100),
        ):
            seq = self.client.send(look)
            try:
                reply, payload = await self.client.answer(seq)
            except OSError:
                continue
            assert not self.arena.leaks(reply, payload), make
        await self.client.call(m.Close, handle)


async def attacker(arena: Arena, engine: EngineProcess, links: str = "keep") -> Attacker:
    client = RawClient()
    await client.open(engine.url, engine.ticket(), links=links, features=[m.LEASES])
    return Attacker(arena, client)


def test_every_request_with_a_name_is_tried() -> None:
    assert kinds_of(by_path(b"x")) == kinds_with("ref", "refs", "parent", "new_parent")
    assert kinds_of(by_name(b"x")) == kinds_with("name", "new_name")
    assert kinds_of(by_handle(1)) == kinds_with("handle", "source", "ref", "refs", "parent") - {
        m.Close,
        m.Reopen,
    }


@pytest.mark.parametrize("links", ["keep", "contain", "follow"])
async def test_paths(arena: Arena, engine: EngineProcess, links: str) -> None:
    tried = await attacker(arena, engine, links)
    for path in arena.paths():
        answers = await tried.all(by_path(path))
        if is_outside(path):
            replies = [(make, reply) for make, reply in answers if not isinstance(reply, int)]
            assert not replies, path
        arena.check_untouched()
        arena.build()
    assert tried.answered > 3000
    assert tried.errors["EACCES"] > 1000  # what names the outside by itself
    assert set(tried.errors) <= {
        "EACCES", "EBUSY", "EEXIST", "EINVAL", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENODATA", "ENOENT",
        "ENOTDIR", "ENOTEMPTY", "ENXIO", "EOPNOTSUPP", "EPERM", "ESTALE", "EXDEV",
    }, tried.errors  # fmt: skip


@pytest.mark.parametrize("links", ["keep", "follow"])
async def test_names(arena: Arena, engine: EngineProcess, links: str) -> None:
    tried = await attacker(arena, engine, links)
    for name in arena.names():
        for make in by_name(name):  # one after the other: each finds the workspace as it was
            [(_, answer)] = await tried.all([make])
            entry = make.func not in (m.GetXattr, m.SetXattr, m.RemoveXattr)
            if b"\0" in name or (entry and (b"/" in name or name in (b"", b".", b".."))):
                assert isinstance(answer, int), (make, answer)
            arena.check_untouched()
            arena.build()


async def test_identities_of_files_outside(arena: Arena, engine: EngineProcess) -> None:
    """Who has learnt what file the canary is, gets no nearer to it."""
    tried = await attacker(arena, engine)
    for path in (b"", b"file", b"dir", b"relative", b"relative-file", b"../outside/canary"):
        for target in (arena.outside, arena.outside / "canary"):
            for make, answer in await tried.all(by_path(path, arena.identity(target))):
                other = make.func is m.Link and make.keywords["ref"] == Ref(b"file")
                assert other or isinstance(answer, int), (make, answer)
            arena.check_untouched()
            arena.build()


async def test_numbers_that_are_no_handles(arena: Arena, engine: EngineProcess) -> None:
    """Above all the engine's own descriptors."""
    tried = await attacker(arena, engine)
    for number in (*range(1, 64), 4096, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -1, -100, -(2**63)):
        for _, answer in await tried.all(by_handle(number)):
            assert answer == errno.EBADF
    arena.check_untouched()


@needs_root
@pytest.mark.parametrize("links", ["keep", "follow"])
async def test_mounts(arena: Arena, engine: EngineProcess, links: str) -> None:
    """What is outside, mounted inside, while the engine runs."""
    ws = arena.workspace
    with ExitStack() as stack:
        for source, target in (
            (arena.outside, ws / "mounted"),
            (arena.outside / "canary", ws / "mounted-file"),
        ):
            target.mkdir() if source.is_dir() else target.touch()
            subprocess.run(["mount", "--bind", source, target], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", target], check=True)
        tried = await attacker(arena, engine, links)
        for path in (
            b"mounted",
            b"mounted/",
            b"mounted/.",
            b"mounted/canary",
            b"mounted/dir/inner",
            b"mounted-file",
        ):
            for make, answer in await tried.all(by_path(path)):
                assert isinstance(answer, int), (make, answer)
        for name in (b"mounted", b"mounted-file"):
            for make in by_name(name):
                [(_, answer)] = await tried.all([make])
                elsewhere = make.keywords.get("new_parent") == Ref(b"dir")
                if not elsewhere and make.func not in (m.GetXattr, m.SetXattr, m.RemoveXattr):
                    assert isinstance(answer, int), (make, answer)
        root = (await tried.all([Make(m.OpenDir, ref=Ref(b""))]))[0][1]
        assert isinstance(root, m.OpenReply)
        arena.check_untouched()


async def test_a_hard_link_is_made_to_what_can_be_named_and_to_nothing_else(
    arena: Arena, engine: EngineProcess
) -> None:
    tried = await attacker(arena, engine)
    for path in arena.paths():
        if is_outside(path) or b"canary" in path:
            [(_, answer)] = await tried.all([Make(m.Link, ref=Ref(path), parent=Ref(b""), name=b"stolen")])
            assert isinstance(answer, int)
    [(_, made)] = await tried.all([Make(m.Link, ref=Ref(b"relative-file"), parent=Ref(b""), name=b"stolen")])
    assert isinstance(made, m.AttrReply)  # of the symbolic link itself
    assert (arena.workspace / "stolen").is_symlink()
    arena.check_untouched()


async def test_a_confined_engine_answers_the_same(
    arena: Arena, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With Landlock nothing that is allowed is lost."""
    tenants = {"default": {"root": str(arena.workspace), "follow_roots": [str(arena.shared)]}}
    answers = []
    for landlock in (False, True):
        engine = EngineProcess(
            arena.workspace, tmp_path_factory.mktemp("state"), tenants=tenants, landlock=landlock
        )
        try:
            tried = await attacker(arena, engine, "follow")
            said = []
            for path in (
                b"",
                b"dir",
                b"file",
                b"to-shared",
                b"to-shared/file",
                b"relative",
                b"empty",
                b"fifo",
            ):
                for make in by_path(path):
                    [(_, answer)] = await tried.all([make])
                    if make.func is m.Link and answer == errno.EXDEV:  # a directory: Landlock looks first
                        answer = errno.EPERM
                    said.append(
                        (make.func, make.keywords, answer if isinstance(answer, int) else type(answer))
                    )
                    arena.build()
            answers.append(said)
            await tried.client.close()
        finally:
            assert engine.stop() == 0
    assert answers[0] == answers[1]
    arena.check_untouched()


# --- whatever hypothesis comes up with, on the operations themselves

PIECES = [
    b"..", b".", b"", b"dir", b"sub", b"file", b"outside", b"canary", b"planted", b"workspace", b"shared", b"escape",
    b"relative", b"absolute", b"relative-file", b"chain", b"up", b"dangling", b"magic", b"to-shared", b"loop",
    b"\0", b"\xff", b"x" * 255,
]  # fmt: skip


@st.composite
def any_path(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(st.sampled_from(PIECES), max_size=8))
    while parts.count(b"..") > DEPTH:
        parts.remove(b"..")
    return b"/".join(parts).lstrip(b"/")


@st.composite
def any_request(draw: st.DrawFn) -> Make:
    make: Make
    if draw(st.booleans()):
        make = draw(st.sampled_from(by_path(draw(any_path()))))
    else:
        make = draw(st.sampled_from(by_name(draw(st.one_of(st.sampled_from(PIECES), any_path())))))
    if "new_parent" in make.keywords and draw(st.booleans()):
        make = Make(make.func, **{**make.keywords, "new_parent": Ref(draw(any_path()))})
    return make


@examples(200)
@given(requests=st.lists(any_request(), min_size=1, max_size=12), links=st.sampled_from(["keep", "follow"]))
def test_sequences_of_anything(arena: Arena, requests: list[Make], links: str) -> None:
    """Several in a row, so that what one leaves behind (renamed links, say) is there for the next."""
    arena.build()
    sandbox = Sandbox(bytes(arena.workspace), follow_roots=[bytes(arena.shared)], links=links)
    context = Context(sandbox, HandleTable())
    try:
        for make in requests:
            try:
                reply, payload = execute(context, make(1), b"planted")
            except OSError:
                continue
            assert not arena.leaks(reply, payload), make
            if isinstance(reply, m.OpenReply):
                for look in (m.Read(2, reply.handle, 0, 4096), m.ReadDir(2, reply.handle, 0, 100)):
                    try:
                        assert not arena.leaks(*execute(context, look)), make
                    except OSError:
                        continue
        arena.check_untouched()
    finally:
        context.handles.close_all()
        sandbox.close()


def test_the_corpus_would_notice(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jail that compares texts, as so many have been, does not hold against it."""

    def open_path(self: Sandbox, path: bytes, flags: int = 0, nowait: bool = False) -> int:
        full = os.path.normpath(self.root + b"/" + path.replace(b"\0", b""))
        if not full.startswith(self.root):
            raise PermissionError(errno.EACCES, "outside")
        return os.open(full, os.O_PATH | flags)

    monkeypatch.setattr(Sandbox, "open_path", open_path)
    sandbox = Sandbox(bytes(arena.workspace))
    context = Context(sandbox, HandleTable())
    found: set[Any] = set()
    for path in arena.paths():
        for make in by_path(path):
            if make.func not in (m.GetAttr, m.Lookup, m.GetXattr, m.ListXattr):
                continue
            try:
                reply, payload = execute(context, make(1))
            except OSError:
                continue
            if arena.leaks(reply, payload):
                found.add(make.func)
    sandbox.close()
    assert {m.GetAttr, m.Lookup} <= found
