"""Reckoning where symbolic links lead."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.engine.links import Place, locate, parts, walk
from jupyter_wsfuse.errors import SandboxError
from tests.helpers.workspace import fails

ROOTS = [[b"srv", b"work"], [b"srv", b"data"], [b"srv", b"data", b"inner"]]


def where(path: bytes, links: dict[bytes, bytes] | None = None) -> tuple[int, bytes]:
    table = links or {}

    def read_link(place: Place) -> bytes | None:
        return table.get(b"/" + b"/".join([*ROOTS[place.root], *place.below]))

    place = walk(path, ROOTS, read_link)
    return place.root, b"/".join(place.below)


def test_parts() -> None:
    assert parts(b"/a//b/./c/") == [b"a", b"b", b"c"]
    assert parts(b"") == []


def test_the_innermost_folder_counts() -> None:
    assert locate([b"srv", b"data", b"inner", b"x"], ROOTS) == Place(2, (b"x",))
    assert locate([b"srv", b"data"], ROOTS) == Place(1, ())
    assert locate([b"srv", b"datax"], ROOTS) is None


@pytest.mark.parametrize(
    ("path", "links", "result"),
    [
        (b"/srv/work/a/b", {}, (0, b"a/b")),
        (b"/srv/work/l", {b"/srv/work/l": b"/srv/data/x"}, (1, b"x")),
        (b"/srv/work/l", {b"/srv/work/l": b"../data/x/../y"}, (1, b"y")),
        (b"/srv/work/l/rest", {b"/srv/work/l": b"/srv/data"}, (1, b"rest")),
        (
            b"/srv/work/l",
            {b"/srv/work/l": b"m", b"/srv/work/m": b"/srv/data/n", b"/srv/data/n": b"o"},
            (1, b"o"),
        ),
        (b"/srv/work/l", {b"/srv/work/l": b"/srv/data/inner/x"}, (2, b"x")),
        (b"/../../srv/data/x", {}, (1, b"x")),
    ],
)
def test_leading_inside(path: bytes, links: dict[bytes, bytes], result: tuple[int, bytes]) -> None:
    assert where(path, links) == result


@pytest.mark.parametrize(
    ("path", "links"),
    [
        (b"/srv/work/l", {b"/srv/work/l": b"/etc/passwd"}),
        (b"/srv/work/l", {b"/srv/work/l": b"/srv/datax/f"}),
        (b"/srv/work/l", {b"/srv/work/l": b"/srv"}),
        (b"/srv/work/l", {b"/srv/work/l": b"/"}),
        (b"/srv/work/l", {b"/srv/work/l": b"../../../../.."}),
        # Through a place that is not looked at, whatever it would lead to.
        (b"/srv/work/l", {b"/srv/work/l": b"/srv/other/../data/x"}),
        (b"/srv/work/l", {b"/srv/work/l": b"/srv/data/n", b"/srv/data/n": b"/root"}),
    ],
)
def test_leading_outside(path: bytes, links: dict[bytes, bytes]) -> None:
    with pytest.raises(SandboxError) as caught:
        where(path, links)
    assert caught.value.errno == errno.EACCES


def test_a_loop_ends() -> None:
    with fails(errno.ELOOP):
        where(b"/srv/work/l", {b"/srv/work/l": b"m", b"/srv/work/m": b"l"})


names = st.sampled_from([b"srv", b"work", b"data", b"inner", b"l", b"m", b"..", b".", b"", b"etc"])
paths = st.lists(names, max_size=6).map(b"/".join)


@given(paths, st.dictionaries(st.sampled_from([b"/srv/work/l", b"/srv/data/m", b"/srv/work/m"]), paths))
def test_the_end_is_always_in_a_folder_and_never_a_link(path: bytes, links: dict[bytes, bytes]) -> None:
    try:
        root, below = where(b"/srv/work/" + path, links)
    except OSError:
        return
    absolute = b"/" + b"/".join([*ROOTS[root], *parts(below)])
    assert absolute not in links
    assert b".." not in below.split(b"/")
