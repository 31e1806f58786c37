"""Rules, scopes and policies: the pure decisions."""

from __future__ import annotations

import errno
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.engine import permissions
from jupyter_wsfuse.engine.permissions import (
    ALL,
    DELETE,
    EXECUTE,
    LIST,
    READ,
    RIGHTS,
    SEARCH,
    SEE,
    WRITE,
    Decision,
    Policy,
    Rule,
    RuleSet,
    Scope,
    join,
    parse_rule,
    split,
)
from jupyter_wsfuse.errors import DeniedError
from tests.engine.test_patterns import pathspec_says


def rules(*texts: str) -> RuleSet:
    return RuleSet([parse_rule(text, f"rule {number}") for number, text in enumerate(texts, 1)])


def policy(*texts: str, hide: bool = False, scope: Scope | None = None) -> Policy:
    return Policy(rules(*texts), scope, hide=hide)


def allowed(policy: Policy, path: bytes, directory: bool = False) -> str:
    """The first letters of the rights, with s for being seen and l for listing."""
    view = policy.view(path, directory)
    letters = zip("rwxdls", (READ, WRITE, EXECUTE, DELETE, LIST, SEE), strict=True)
    return "".join(letter for letter, bit in letters if view.allowed & bit)


# --- reading rules


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("deny write,delete /raw/**", Rule(False, WRITE | DELETE, "/raw/**", "here")),
        ("allow all *.csv", Rule(True, ALL, "*.csv", "here")),
        ("  Deny  READ\t a b ", Rule(False, READ, "a b", "here")),
        ("deny execute x", Rule(False, EXECUTE, "x", "here")),
        ("allow search *", Rule(True, SEARCH, "*", "here")),
        ("deny read a\\ ", Rule(False, READ, "a\\ ", "here")),
        ("deny read a\\\\ ", Rule(False, READ, "a\\\\", "here")),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert parse_rule(text, "here") == rule


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a rule is"),
        ("   ", "a rule is"),
        ("permit read *", "begins with 'allow' or 'deny', not with 'permit'"),
        ("deny", "'' is no right"),
        ("deny fly *", "'fly' is no right: expected read, write, execute, delete, search, all"),
        ("deny read, write *", "'' is no right"),
        ("deny read", "the pattern is missing"),
        ("deny read !x", "allow rule"),
        ("deny read a\nallow read b", "one line"),
    ],
)
def test_what_is_no_rule(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_rule(text, "here")
    assert problem in str(caught.value)


def test_a_rule_says_where_it_stands_and_what_it_says() -> None:
    assert str(parse_rule("deny delete,write /raw/**", "tenant physics, rule 3")) == (
        "tenant physics, rule 3: deny write,delete /raw/**"
    )
    assert str(parse_rule("allow all *", "x")) == "x: allow all *"
    assert str(parse_rule("deny search *", "x")) == "x: deny search *"


def test_splitting_and_joining() -> None:
    for path, parts in [
        (b"a", (b"", b"a")), (b"a/b/c", (b"a/b", b"c")), (b"/a", (b"/", b"a")), (b"/a/b", (b"/a", b"b")),
        (b"", (b"", b"")), (b"/", (b"/", b"")),
    ]:  # fmt: skip
        assert split(path) == parts
        assert join(*parts) == path


# --- deciding


def test_the_last_match_wins_for_each_right() -> None:
    these = rules("deny all /raw/**", "allow read,write /raw/new/**", "deny write *.lock")
    assert these.decide(b"other", False, WRITE) == Decision(True, "the default")
    assert these.decide(b"raw/x", False, READ) == Decision(False, "rule 1: deny all /raw/**")
    assert these.decide(b"raw/new/x", False, READ) == Decision(True, "rule 2: allow read,write /raw/new/**")
    assert these.decide(b"raw/new/x", False, DELETE) == Decision(False, "rule 1: deny all /raw/**")
    assert these.decide(b"raw/new/x.lock", False, WRITE).rule == "rule 3: deny write *.lock"
    assert these.decide(b"raw/new/x.lock", False, READ).rule == "rule 2: allow read,write /raw/new/**"
    assert these.decide(b"raw", True, DELETE) == Decision(True, "the default")


def test_what_a_directory_is_denied_is_denied_below() -> None:
    these = rules("deny write raw/")
    assert not these.decide(b"a/raw/b/c", False, WRITE).allowed
    assert not these.decide(b"a/raw", True, WRITE).allowed
    assert these.decide(b"a/raw", False, WRITE).allowed


def test_the_top_is_nobodys_to_close() -> None:
    assert allowed(policy("deny all *", "deny all /**", hide=True), b"", True) == "rwxdls"


@pytest.mark.parametrize("name", [b"secret\n", b"\nsecret", b"a\nsecret", b"secret ", b"SECRET"])
def test_newlines_neither_dodge_nor_fake(name: bytes) -> None:
    these = rules("deny read *", "allow read secret")
    assert not these.decide(name, False, READ).allowed
    these = rules("deny read secret*", "deny read *secret")
    expected = name in (b"secret\n", b"\nsecret", b"a\nsecret", b"secret ")
    assert these.decide(name, False, READ).allowed is not expected


def test_names_that_are_no_text() -> None:
    these = rules("deny read a?")
    assert not these.decide(b"a\xff", False, READ).allowed
    assert these.decide(b"a\xff\xfe", False, READ).allowed
    assert not these.decide("aä".encode(), False, READ).allowed


def test_outside_of_the_workspace_rules_hold_in_each_folder() -> None:
    these = rules("deny read /raw/**")
    assert not these.decide(b"/raw/x", False, READ).allowed
    assert these.decide(b"/a/raw/x", False, READ).allowed


words = st.sampled_from(["read", "write", "execute", "delete", "all", "search", "read,write"])
globs = st.sampled_from(
    ["*", "/a", "a/", "/a/**", "b", "/a/b", "*.c", "**/b/c", "/a/*/c", "x.c", "/b/**/a", "*/", "?", "/a/b/"]
)  # fmt: skip
texts = st.lists(st.builds("{} {} {}".format, st.sampled_from(["allow", "deny"]), words, globs), max_size=5)
paths = st.lists(st.sampled_from([b"a", b"b", b"c", b"x.c"]), min_size=1, max_size=4).map(b"/".join)


@given(texts, paths, st.booleans())
def test_decisions_agree_with_the_plain_reading(texts: list[str], path: bytes, directory: bool) -> None:
    these = rules(*texts)
    for bit in (READ, WRITE, DELETE, EXECUTE):
        expected, why = True, "the default"
        for rule in these.rules:
            applies = rule.rights | (EXECUTE if rule.rights & SEARCH and directory else 0)
            if applies & bit and pathspec_says(rule.pattern, path.decode(), directory):
                expected, why = rule.allow, str(rule)
        decision = these.decide(path, directory, bit)
        if bit == EXECUTE and directory and not expected and decision.allowed:
            continue  # open for what a later rule allows below
        assert decision == (expected, why)


# --- the way


def test_a_directory_that_may_not_be_searched() -> None:
    this = policy("deny execute /private/")
    assert allowed(this, b"private", True) == "rwdls"
    assert allowed(this, b"private/x") == ""
    assert allowed(this, b"other/x") == "rwxds"
    with pytest.raises(DeniedError) as caught:
        this.check(b"private/x", False, 0)
    assert caught.value.rule == "rule 1: deny execute /private/"
    assert this.decide(b"private/x", False, READ) == Decision(False, "rule 1: deny execute /private/")


def test_an_earlier_rule_opens_no_way() -> None:
    this = policy("allow all /private/x", "deny execute /private/")
    assert allowed(this, b"private/x") == ""
    assert allowed(this, b"private", True) == "rwdls"


def test_nothing_executed_and_everything_found() -> None:
    this = policy("deny execute *", "allow search *")
    assert allowed(this, b"bin", True) == "rwxdls"
    assert allowed(this, b"bin/tool") == "rwds"


def test_the_way_to_what_a_later_rule_allows_is_open() -> None:
    this = policy("deny all *", "allow all /data/pub/**")
    assert allowed(this, b"data", True) == "xs"
    assert allowed(this, b"data/pub", True) == "xs"
    assert allowed(this, b"data/pub/x") == "rwxds"
    assert allowed(this, b"data/other") == ""
    assert allowed(this, b"else", True) == "s"
    assert allowed(this, b"else/x") == ""
    assert this.decide(b"data", True, EXECUTE) == Decision(True, "rule 2: allow all /data/pub/**")


@given(texts, paths, st.booleans(), st.booleans())
def test_whatever_is_seen_can_be_reached(texts: list[str], path: bytes, directory: bool, hide: bool) -> None:
    this = policy(*texts, hide=hide)
    if "s" in allowed(this, path, directory):
        way = split(path)[0]
        while way:
            assert {"x", "s"} <= set(allowed(this, way, True))
            if hide and this.view(path, directory).allowed & READ:
                assert "l" in allowed(this, way, True)
            way = split(way)[0]


# --- hiding


def test_hiding() -> None:
    this = policy("deny read *.key", "deny read /private", hide=True)
    assert this.hides
    assert this.hidden(b"a/x.key", False)
    assert this.hidden(b"private", True)
    assert this.hidden(b"private/x", False)
    assert not this.hidden(b"a", True)
    assert not policy("deny read *.key").hidden(b"x.key", False)
    assert allowed(policy("deny read *.key"), b"x.key") == "wxds"


def test_what_leads_to_something_readable_is_listed() -> None:
    this = policy("deny read *", "allow read /data/**/*.csv", hide=True)
    assert allowed(this, b"data", True) == "wxdls"
    assert allowed(this, b"data/deep", True) == "wxdls"
    assert allowed(this, b"data/x.txt") == "wxd"
    assert allowed(this, b"data/x.csv") == "rwxds"
    assert allowed(this, b"other", True) == "wxd"
    # Without hiding, a listing would show what may not be read.
    assert allowed(policy("deny read *", "allow read /data/**/*.csv"), b"data", True) == "wxds"


# --- tokens


def test_a_scope() -> None:
    this = policy(scope=Scope((b"data/mine", b"one.txt"), READ, "token 7"))
    assert this.hides
    assert not this.unrestricted
    assert allowed(this, b"", True) == "xls"
    assert allowed(this, b"data", True) == "xls"
    assert allowed(this, b"data/mine", True) == "rxls"
    assert allowed(this, b"data/mine/x") == "rs"
    assert allowed(this, b"one.txt") == "rs"
    for outside in (b"data/other", b"data/mines", b"one.txt2", b"dat", b"/data/mine/x", b"/"):
        assert allowed(this, outside) == ""
        assert this.hidden(outside, False)
    assert allowed(this, b"data", False) == ""  # a file of that name is not the way
    assert this.decide(b"data/mine/x", False, WRITE) == Decision(False, "token 7: it gives read")
    assert this.decide(b"data", True, READ) == Decision(
        False, "token 7: not in its paths, only on the way to them"
    )
    assert this.decide(b"data", True, EXECUTE).allowed
    assert this.decide(b"else", True, READ) == Decision(False, "token 7: not in its paths")
    assert this.decide(b"data/mine", True, EXECUTE).allowed


def test_a_scope_and_rules() -> None:
    this = policy("deny read *.key", scope=Scope((b"data",), READ | WRITE, "token 7"))
    assert allowed(this, b"data/x.key") == "ws"
    assert allowed(this, b"data/x") == "rws"
    assert this.decide(b"data/x.key", False, READ).rule == "rule 1: deny read *.key"
    nothing = policy(scope=Scope((b"",), 0, "token 8"))
    assert nothing.decide(b"x", False, READ).rule == "token 8: it gives nothing"
    assert not nothing.hides


# --- what may be asked


def test_unrestricted() -> None:
    assert Policy.OPEN.unrestricted
    assert not Policy.OPEN.hides
    assert Policy(RuleSet(()), hide=True).unrestricted
    assert not Policy(RuleSet(()), hide=True).hides
    assert policy(scope=Scope((b"",), ALL, "t")).unrestricted
    assert not policy(scope=Scope((b"",), READ, "t")).unrestricted
    assert not policy(scope=Scope((b"a",), ALL, "t")).unrestricted
    assert not policy("allow all *").unrestricted
    assert allowed(Policy.OPEN, b"any/thing") == "rwxds"


def test_check() -> None:
    this = policy("deny write,delete /raw/**")
    this.check(b"raw/x", False, READ | EXECUTE)
    with pytest.raises(DeniedError) as caught:
        this.check(b"raw/x", False, READ | WRITE)
    assert caught.value.errno == errno.EACCES
    assert caught.value.strerror == "denied by rule 1: deny write,delete /raw/**"
    with pytest.raises(DeniedError):
        policy("deny read /raw").check(b"raw", True, LIST)


def test_explaining() -> None:
    this = policy("deny write,delete /raw/**")
    assert this.explain(b"raw/x", False) == (
        "read: allowed by the default; write: denied by rule 1: deny write,delete /raw/**; "
        "execute: allowed by the default; delete: denied by rule 1: deny write,delete /raw/**"
    )
    assert set(RIGHTS) == {part.split(":")[0].strip() for part in this.explain(b"x", False).split(";")}


# --- moving


@pytest.mark.parametrize(
    ("texts", "old", "new", "directory", "rule"),
    [
        (["deny read /raw/**"], b"raw/x", b"x", False, 1),
        (["deny read /raw/**"], b"x", b"raw/x", False, 0),
        (["deny read /raw/**"], b"raw/x", b"raw/y", False, 0),
        (["deny read *.key"], b"x.key", b"x", False, 1),
        (["deny all *", "allow all /data/**"], b"x", b"data/x", False, 1),
        (["deny delete /raw/**"], b"raw", b"x", True, 1),
        (["deny delete /raw/**"], b"x", b"raw", True, 0),
        (["deny delete /raw/**"], b"x", b"y", True, 0),
        (["deny read *.key"], b"x", b"y", True, 0),
        (["deny read /a/b/c"], b"a", b"x", True, 1),
        (["deny read *", "allow read /data/**"], b"x", b"data", True, 2),
        (["deny read *", "allow read /data/**"], b"data", b"x", True, 0),
        (["deny read a/"], b"x", b"a", True, 0),
        (["deny read a/"], b"a", b"x", True, 1),
    ],
)
def test_moving_gives_no_rights(texts: list[str], old: bytes, new: bytes, directory: bool, rule: int) -> None:
    said = policy(*texts).gained(old, new, directory)
    assert said.startswith(f"rule {rule}:" if rule else "")
    assert bool(said) == bool(rule)


def test_moving_a_directory_out_of_a_closed_one() -> None:
    this = policy("deny execute /a/", "allow search /a/b/", "allow read /a/b/c/d")
    assert allowed(this, b"a/b", True) == "rwxdls"
    assert this.gained(b"a/b/c", b"x", True)


@given(texts, paths, paths, paths, st.booleans(), st.booleans())
def test_nothing_below_gains_either(
    texts: list[str], old: bytes, new: bytes, below: bytes, directory: bool, hide: bool
) -> None:
    this = policy(*texts, hide=hide)
    if "s" not in allowed(this, old, True) or this.gained(old, new, True):
        return
    for before, after in ((old, new), (join(old, below), join(new, below))):
        kind = directory or before == old
        # What is closed or hidden at the old place is no less so at the new one; being listed follows from
        # being read.
        assert not this.view(after, kind).allowed & ~this.view(before, kind).allowed & (ALL | SEE)


# --- bounds


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "CACHE_BYTES", 100_000)
    these = rules("deny read x*", "allow read xa*")
    for number in range(3000):
        path = b"d%d/%s" % (number, b"x" * (number % 250))
        assert these.decide(path, False, READ).allowed == (number % 250 == 0)
        assert these.decide(path, True, READ).allowed == (number % 250 == 0)
    assert len(these._files) < 1000
    assert len(these._states) < 1000
    assert these.verdict(b"d2999/" + b"x" * 249, False) is these.verdict(b"d2999/" + b"x" * 249, False)


def test_what_is_used_again_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "CACHE_BYTES", 20_000)
    these = rules("deny read x")
    first = these.verdict(b"x", False)
    for number in range(1000):
        these.verdict(b"%d" % number, False)
        assert these.verdict(b"x", False) is first


def test_threads() -> None:
    these = rules("deny read /a/**", "allow read *.c")
    wrong: list[bytes] = []

    def work(start: int) -> None:
        for number in range(start, start + 2000):
            for path, expected in ((b"a/%d" % number, False), (b"a/%d.c" % number, True)):
                if these.decide(path, False, READ).allowed is not expected:
                    wrong.append(path)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 4000, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
