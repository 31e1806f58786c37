"""What a scoped token may say: wishes, and that nothing is given that the creator has not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.engine.tenants import Limits
from jupyter_wsfuse.extension import tokens
from jupyter_wsfuse.extension.tokens import (
    DEFAULT_LIFETIME,
    LIMITS,
    MAX_PARENTS,
    Creator,
    Wish,
    clean_path,
    narrowed,
    presented,
    read_wish,
    workspace_name,
)
from jupyter_wsfuse.protocol.tickets import TokenClaims

BOTH = frozenset({"read", "write"})
ANN = Creator("ann", ("staff",), BOTH)
DAYS = 2 * 86400.0


def wish(**changes: Any) -> Wish:
    return dataclasses.replace(Wish((), BOTH, 3600.0, {}, ""), **changes)


def test_the_limits_are_the_engines() -> None:
    known = {field.name for field in dataclasses.fields(Limits)}
    assert known - {"max_wait", "refuse"} == LIMITS


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("token wsfuse1_abc", "wsfuse1_abc"),
        ("Bearer  wsfuse1_abc ", "wsfuse1_abc"),
        ("TOKEN wsfuse1_", "wsfuse1_"),
        ("token abc", None),
        ("Basic wsfuse1_abc", None),
        ("wsfuse1_abc", None),
        ("", None),
    ],
)
def test_where_a_token_stands(header: str, token: str | None) -> None:
    assert presented(header) == token


def test_a_workspace_has_a_name_of_its_own(tmp_path: Any) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    names = [
        workspace_name(str(tmp_path)), workspace_name("/srv/b"), workspace_name("/srv/b", "/etc/t.yaml"),
        workspace_name("/srv/b", "/etc/u.yaml"),
    ]  # fmt: skip
    assert len(set(names)) == 4
    assert workspace_name(str(tmp_path / "link")) == names[0]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("data/", b"data"), ("./a//b/.", b"a/b"), (".", b""), ("./", b""), ("...", b"..."), ("a\n", b"a\n"),
        ("\u00e4", "\u00e4".encode()), ("\udcff", b"\xff"), ("..a/b..", b"..a/b.."),
    ],
)  # fmt: skip
def test_paths_are_brought_to_one_form(text: str, path: bytes) -> None:
    assert clean_path(text) == path


@pytest.mark.parametrize("text", ["/", "/etc", "..", "a/../b", "a/..", "../a", "", "a\0b"])
def test_paths_that_are_not_plainly_inside(text: str) -> None:
    with pytest.raises(ValueError, match="path"):
        clean_path(text)


def test_a_wish_with_everything() -> None:
    body = {
        "paths": ["data/", "data/raw", "b"], "rights": ["write"], "expires": 60, "limits": {"read": 5},
        "label": "for ben", "tenant": "x",
    }  # fmt: skip
    assert read_wish(body, DAYS) == Wish((b"b", b"data"), BOTH, 60.0, {"read": 5}, "for ben")


def test_a_wish_for_nothing_in_particular() -> None:
    assert read_wish({}, DAYS) == Wish((), BOTH, DEFAULT_LIFETIME, {}, "")
    with pytest.raises(ValueError, match="60 seconds at most"):
        read_wish({"expires": 61}, 60.0)
    assert read_wish({"rights": ["read"]}, 60.0) == Wish((), frozenset({"read"}), 60.0, {}, "")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"paths": "data"}, "list of texts"),
        ({"paths": [1]}, "list of texts"),
        ({"paths": ["/etc"]}, "relative"),
        ({"paths": [f"p{n}" for n in range(65)]}, "64 paths"),
        ({"paths": ["x" * 3000]}, "2048 bytes"),
        ({"rights": []}, "rights"),
        ({"rights": ["admin"]}, "rights"),
        ({"rights": "read"}, "rights"),
        ({"expires": 0}, "2 days at most"),
        ({"expires": DAYS + 1}, "2 days at most"),
        ({"expires": float("nan")}, "2 days at most"),
        ({"expires": True}, "2 days at most"),
        ({"expires": "8h"}, "2 days at most"),
        ({"limits": []}, "limits may be"),
        ({"limits": {"refuse": 1}}, "limits may be"),
        ({"limits": {"read": 0}}, "limit of read"),
        ({"limits": {"read": float("inf")}}, "limit of read"),
        ({"limits": {"read": None}}, "limit of read"),
        ({"limits": {"handles": 1.5}}, "limit of handles"),
        ({"label": 1}, "label"),
        ({"label": "x" * 101}, "label"),
        ({"label": "a\x1b[31m"}, "label"),
    ],
)
def test_wishes_that_cannot_be_granted(body: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_wish(body, DAYS)


def test_a_token_of_somebody_who_may_do_everything() -> None:
    given_ = narrowed(wish(paths=(b"data",), limits={"read": 5.0}, label="x"), ANN, "id", 1000.0)
    assert given_ == TokenClaims(
        id="id", paths=(b"data",), rights=BOTH, expires=4600.0, limits={"read": 5.0}, label="x"
    )
    assert narrowed(wish(), ANN, "id", 0.0).paths == (b"",)


def test_rights_are_those_of_the_creator() -> None:
    reader = Creator("ann", (), frozenset({"read"}))
    assert narrowed(wish(), reader, "id", 0.0).rights == {"read"}
    assert narrowed(wish(rights=frozenset({"read"})), ANN, "id", 0.0).rights == {"read"}
    with pytest.raises(ValueError, match="no right"):
        narrowed(wish(), Creator("ann", (), frozenset()), "id", 0.0)


PARENT = TokenClaims(
    id="p", paths=(b"a/b", b"c"), rights=frozenset({"read"}), expires=2000.0,
    limits={"read": 10.0, "bytes_out": 7.0}, parents=("g",), parent_limits=({"handles": 1.0},),
)  # fmt: skip
HOLDER = Creator("ann", (), BOTH, PARENT)


def test_a_token_made_with_a_token_has_no_more() -> None:
    child = narrowed(wish(limits={"read": 20.0, "bytes_out": 3.0, "write": 1.0}), HOLDER, "c", 1000.0)
    assert child == TokenClaims(
        id="c", paths=(b"a/b", b"c"), rights=frozenset({"read"}), expires=2000.0,
        limits={"read": 10.0, "bytes_out": 3.0, "write": 1.0}, parents=("g", "p"),
        parent_limits=({"handles": 1.0}, {"read": 10.0, "bytes_out": 7.0}),
    )  # fmt: skip
    assert narrowed(wish(lifetime=5.0), HOLDER, "c", 1000.0).expires == 1005.0


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ((b"a",), (b"a/b",)),
        ((b"a/b/x", b"a/b/y"), (b"a/b/x", b"a/b/y")),
        ((b"a/b/x", b"a"), (b"a/b",)),
        ((b"",), (b"a/b", b"c")),
        ((b"c", b"d"), (b"c",)),
        ((b"a/bc",), ()),
        ((b"cc",), ()),
    ],
)
def test_paths_of_a_token_are_within_those_of_its_parent(
    asked: tuple[bytes, ...], got: tuple[bytes, ...]
) -> None:
    if got:
        assert narrowed(wish(paths=asked), HOLDER, "c", 0.0).paths == got
    else:
        with pytest.raises(ValueError, match="none of these paths"):
            narrowed(wish(paths=asked), HOLDER, "c", 0.0)


def test_generations_are_bounded() -> None:
    creator = ANN
    for generation in range(MAX_PARENTS + 1):
        claims = narrowed(wish(), creator, str(generation), 0.0)
        creator = dataclasses.replace(ANN, token=claims)
    with pytest.raises(ValueError, match="enough"):
        narrowed(wish(), creator, "x", 0.0)


names = st.sampled_from([b"", b"a", b"b", b"a/a", b"a/b", b"a/a/a", b"ab", b"a/ab"])
path_sets = st.lists(names, min_size=1, max_size=4).map(tokens._reduced)


@given(mine=path_sets, asked=path_sets, probe=st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=4))
def test_no_path_is_opened_that_the_parent_does_not(
    mine: tuple[bytes, ...], asked: tuple[bytes, ...], probe: list[bytes]
) -> None:
    def opens(paths: tuple[bytes, ...]) -> bool:
        here = b"/".join(probe)
        return any(path in (b"", here) or here.startswith(path + b"/") for path in paths)

    parent = TokenClaims(id="p", paths=mine, rights=BOTH, expires=9.0)
    try:
        child = narrowed(wish(paths=asked), dataclasses.replace(ANN, token=parent), "c", 0.0).paths
    except ValueError:
        child = ()
    assert opens(child) == (opens(mine) and opens(asked))
