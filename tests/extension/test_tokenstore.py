"""The store of scoped tokens: signatures, the list, revocation, several servers at a time, and damaged files."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.extension import tokenstore
from jupyter_wsfuse.extension.tokens import PREFIX, Creator, StoreError, TokenError, Wish
from jupyter_wsfuse.extension.tokenstore import TokenStore

BOTH = frozenset({"read", "write"})
ANN = Creator("ann", ("staff",), BOTH)
BEN = Creator("ben", (), BOTH)
WISH = Wish((b"data", b"\xff"), BOTH, 3600.0, {"read": 5.0}, "for ben")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., TokenStore]


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Make:
    return lambda workspace="w": TokenStore(tmp_path / "wsfuse", workspace, clock=clock)


def code(store: TokenStore, text: str) -> str:
    with pytest.raises(TokenError) as caught:
        store.verify(text)
    return caught.value.code


def test_a_token_is_good_for_what_it_says(make: Make, clock: Clock) -> None:
    store = make()
    text, told = store.create(ANN, WISH, "default")
    assert text.startswith(PREFIX)
    found = make().verify(text)  # another server, or this one after a restart
    assert found.claims.paths == (b"data", b"\xff")
    assert (found.principal, found.groups, found.tenant, found.rights) == ("ann", ("staff",), "default", BOTH)
    assert not found.noted
    assert told == {
        "id": found.claims.id, "state": "valid", "label": "for ben", "creator": "ann", "tenant": "default",
        "paths": ["data", "\udcff"], "rights": ["read", "write"], "limits": {"read": 5.0}, "parents": [],
        "created": clock.now, "expires": clock.now + 3600, "used": None, "revoked": None,
    }  # fmt: skip
    assert store.tokens(ANN) == [told]


def test_nothing_is_made_before_it_is_needed(make: Make, tmp_path: Path) -> None:
    store = make()
    assert store.tokens(ANN) == []
    assert store.revoked() == []
    store.seen(ANN)
    assert list(tmp_path.iterdir()) == []


def test_files_are_private_and_do_not_hold_the_token(make: Make, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        text, _ = make().create(ANN, WISH, "default")
    finally:
        os.umask(old)
    folder = tmp_path / "wsfuse"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["token.key", "tokens.json", "tokens.lock"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert text.rpartition(".")[2].encode() not in path.read_bytes()
    assert b"wsfuse1_" not in (folder / "tokens.json").read_bytes()


def test_it_is_for_one_workspace(make: Make) -> None:
    text, told = make().create(ANN, WISH, "default")
    other = make("elsewhere")
    assert code(other, text) == "foreign"
    assert other.tokens(ANN) == []
    with pytest.raises(KeyError):
        other.revoke(ANN, told["id"])
    assert other.revoke(ANN, None) == []


def test_it_expires(make: Make, clock: Clock) -> None:
    store = make()
    text, told = store.create(ANN, WISH, "default")
    clock.now += 3599
    store.verify(text)
    clock.now += 1
    with pytest.raises(TokenError, match=r"expired on 1970-01-12 14:46 UTC; .*wsfuse token create"):
        store.verify(text)
    assert store.tokens(ANN)[0]["state"] == "expired"
    assert store.revoke(ANN, told["id"]) == []  # nothing to do
    clock.now += 8 * 86400
    store.create(ANN, WISH, "default")
    assert told["id"] not in [one["id"] for one in store.tokens(ANN)]
    assert code(store, text) == "expired"


def test_revoking_ends_it_and_what_was_made_with_it(make: Make, clock: Clock) -> None:
    store = make()
    text, told = store.create(ANN, WISH, "default")
    holder = dataclasses.replace(ANN, token=store.verify(text).claims)
    child, child_told = store.create(holder, WISH, "default")
    grandchild, _ = store.create(dataclasses.replace(ANN, token=store.verify(child).claims), WISH, "default")
    other, _ = store.create(ANN, WISH, "default")
    clock.now += 60
    assert store.revoke(ANN, child_told["id"]) == [child_told["id"], store._open(grandchild).claims.id]
    store.verify(text)
    with pytest.raises(TokenError, match=r"this token was revoked on 1970-01-12 13:47 UTC"):
        store.verify(child)
    assert store.revoke(ANN, told["id"]) == [told["id"]]
    assert make().revoked() == store.revoked() != []
    assert len(store.revoked()) == 3
    store.verify(other)
    clock.now += 7200
    assert store.revoked() == []  # nothing that an engine would have to know


def test_a_child_ends_with_its_parent_although_only_that_is_marked(make: Make, tmp_path: Path) -> None:
    store = make()
    text, told = store.create(ANN, WISH, "default")
    child, _ = store.create(dataclasses.replace(ANN, token=store.verify(text).claims), WISH, "default")
    file = tmp_path / "wsfuse" / "tokens.json"
    stored = json.loads(file.read_bytes())
    del stored["tokens"][told["id"]]
    file.write_text(json.dumps(stored))
    with pytest.raises(TokenError, match="the token that this one was made with was revoked; ask"):
        store.verify(child)


def test_everybody_sees_and_revokes_his_own(make: Make, clock: Clock) -> None:
    store = make()
    first, told = store.create(ANN, WISH, "default")
    clock.now += 1
    _, second = store.create(ANN, WISH, "default")
    text, bens = store.create(BEN, WISH, "default")
    assert [one["id"] for one in store.tokens(ANN)] == [second["id"], told["id"]]
    with pytest.raises(KeyError):
        store.revoke(ANN, bens["id"])
    with pytest.raises(KeyError):
        store.revoke(ANN, "0" * 16)
    holder = dataclasses.replace(ANN, token=store.verify(first).claims)
    _, child = store.create(holder, WISH, "default")
    assert {one["id"] for one in store.tokens(holder)} == {told["id"], child["id"]}
    with pytest.raises(KeyError):
        store.revoke(holder, second["id"])
    assert sorted(store.revoke(holder, None)) == sorted([told["id"], child["id"]])
    assert store.revoke(ANN, None) == [second["id"]]
    store.verify(text)


def test_uses_are_noted_now_and_then(make: Make, clock: Clock) -> None:
    store = make()
    text, _ = store.create(ANN, WISH, "default")
    assert store.verify(text, use=True).noted
    clock.now += 30
    assert not store.verify(text, use=True).noted
    assert make().tokens(ANN)[0]["used"] == clock.now - 30
    clock.now += 30
    assert store.verify(text, use=True).noted


def test_a_use_while_the_list_is_lost(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    text, _ = store.create(ANN, WISH, "default")
    changing = store._changing

    def lost_before() -> Any:
        store._file.unlink()
        return changing()

    monkeypatch.setattr(store, "_changing", lost_before)
    assert store.verify(text, use=True).noted
    assert code(store, text) == "revoked"


def test_a_token_follows_what_its_creator_may_do(make: Make) -> None:
    store = make()
    text, _ = store.create(ANN, WISH, "default")
    file_before = store._file.stat().st_ino
    store.seen(ANN)
    store.seen(BEN)
    assert store._file.stat().st_ino == file_before  # nothing new
    store.seen(Creator("ann", ("guests",), frozenset({"read"})))
    found = make().verify(text)
    assert (found.groups, found.rights) == (("guests",), frozenset({"read"}))
    store.seen(ANN)
    assert store.verify(text).rights == BOTH  # and the token's own rights are what they were


def test_there_are_not_too_many(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenstore, "MAX_TOKENS", 2)
    store = make()
    _, one = store.create(ANN, WISH, "default")
    store.create(ANN, WISH, "default")
    with pytest.raises(ValueError, match="2 valid tokens already"):
        store.create(ANN, WISH, "default")
    store.revoke(ANN, one["id"])
    store.create(ANN, WISH, "default")


def test_children_do_not_use_up_what_others_can_make(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenstore, "MAX_TOKENS", 2)
    monkeypatch.setattr(tokenstore, "MAX_CHILDREN", 3)
    store = make()

    def holder(text: str) -> Creator:
        return dataclasses.replace(ANN, token=store.verify(text).claims)

    first, told = store.create(ANN, WISH, "default")
    brief = dataclasses.replace(WISH, lifetime=60.0)
    child, _ = store.create(holder(first), brief, "default")
    _, revoked = store.create(holder(child), WISH, "default")
    store.revoke(holder(first), revoked["id"])
    _, last = store.create(holder(first), WISH, "default")
    for who in (first, child):
        with pytest.raises(
            ValueError, match=rf"3 tokens .* with the token {told['id']}, .* or ask whoever made"
        ):
            store.create(holder(who), WISH, "default")
    second, _ = store.create(ANN, WISH, "default")
    store.create(holder(second), WISH, "default")
    with pytest.raises(ValueError, match="2 valid tokens already"):
        store.create(ANN, WISH, "default")
    clock.now += 60  # what has expired makes room
    store.create(holder(first), WISH, "default")
    store.create(holder(first), WISH, "default")
    listed = [one["id"] for one in store.tokens(holder(first))]
    assert len(listed) == 4
    assert last["id"] in listed
    assert revoked["id"] not in listed
    with pytest.raises(ValueError, match="3 tokens that have not expired"):
        store.create(holder(first), WISH, "default")
    assert code(store, child) == "expired"


def test_what_is_no_token(make: Make) -> None:
    store = make()
    text, _ = store.create(ANN, WISH, "default")
    body, mac = text.removeprefix(PREFIX).split(".")
    for bad in (
        "", PREFIX, text[:-1], text + "A", text + "=", f"{PREFIX}{body}", f"{PREFIX}{body}.", f"{PREFIX}.{mac}",
        f"{text}.{mac}", f"{PREFIX}{body}.{mac}\u20ac", PREFIX + "A" * 20_000, body + "." + mac, "wsfuse2_" + text[8:],
        text.replace(".", "\n."), f"{PREFIX}{body[:-4]}.{mac}", text.upper(),
    ):  # fmt: skip
        assert code(store, bad) == "malformed", bad
    store.verify(text)


def test_another_servers_key_is_no_good(make: Make, tmp_path: Path, clock: Clock) -> None:
    text, _ = TokenStore(tmp_path / "theirs", "w", clock=clock).create(ANN, WISH, "default")
    assert code(make(), text) == "malformed"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(at=st.integers(0), data=st.data())
def test_no_character_can_be_changed(make: Make, at: int, data: st.DataObject) -> None:
    store = make()
    if not store.tokens(ANN):
        (store._directory).mkdir(exist_ok=True)
        (store._directory / "text").write_text(store.create(ANN, WISH, "default")[0])
    text = (store._directory / "text").read_text()
    at = len(PREFIX) + at % (len(text) - len(PREFIX))
    other = data.draw(st.sampled_from("ABCXYZabcxyz0189-_.=+/ "))
    changed = text[:at] + other + text[at + 1 :]
    if changed == text:
        assert store.verify(text)
    else:
        assert code(store, changed) == "malformed"


def test_many_servers_share_one_key_and_one_list(tmp_path: Path) -> None:
    """Made at the same time by stores that have nothing in common but the directory."""
    stores = [TokenStore(tmp_path / "wsfuse", "w") for _ in range(8)]
    texts: list[str] = []
    begin = threading.Barrier(len(stores))

    def work(store: TokenStore) -> None:
        begin.wait()
        for _ in range(4):
            texts.append(store.create(ANN, WISH, "default")[0])

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.verify(text).claims.id for text in texts for store in stores}) == 32
    assert len(stores[0].tokens(ANN)) == 32


def test_a_change_that_fails_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    text, told = store.create(ANN, WISH, "default")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            store.revoke(ANN, told["id"])
    assert store.verify(text)
    assert store.tokens(ANN)[0]["state"] == "valid"
    assert sorted(os.listdir(store._directory)) == ["token.key", "tokens.json", "tokens.lock"]


def test_a_file_system_without_locks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = make()
    assert store.verify(store.create(ANN, WISH, "default")[0])


@pytest.mark.parametrize("name", ["token.key", "tokens.json"])
def test_files_that_others_can_use_are_not_used(make: Make, tmp_path: Path, name: str) -> None:
    text, _ = make().create(ANN, WISH, "default")
    path = tmp_path / "wsfuse" / name
    path.chmod(0o640)
    with pytest.raises(StoreError, match=rf"{name} must belong to you and be closed to others.*Remove it"):
        make().verify(text)
    path.chmod(0o600)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(StoreError, match=f"{name} cannot be read"):
        make().verify(text)


def test_damaged_files(make: Make, tmp_path: Path) -> None:
    text, _ = make().create(ANN, WISH, "default")
    file, key = tmp_path / "wsfuse" / "tokens.json", tmp_path / "wsfuse" / "token.key"
    whole = file.read_bytes()
    for damaged in (whole[:-9], b"", b"\xff", b"[]", b'{"tokens": {"x": {}}}'):
        file.write_bytes(damaged)
        store = make()
        for ask in (lambda s=store: s.verify(text), store.revoked, lambda s=store: s.create(ANN, WISH, "d")):
            with pytest.raises(StoreError, match=r"tokens\.json is damaged"):
                ask()
        assert file.read_bytes() == damaged
    file.unlink()
    assert code(make(), text) == "revoked"  # a list that was lost revokes; it does not open
    key.write_bytes(b"short")
    with pytest.raises(StoreError, match=r"token\.key is damaged"):
        make().verify(text)
