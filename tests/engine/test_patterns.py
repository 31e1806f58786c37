"""Gitignore-style patterns, name by name."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from jupyter_wsfuse.engine.patterns import Pattern


def state_of(pattern: Pattern, directory: str) -> int:
    state = pattern.start
    for name in filter(None, directory.split("/")):
        state = pattern.step(state, name)
    return state


def matches(text: str, path: str) -> bool:
    """*path* with a slash at its end is a directory."""
    pattern = Pattern(text)
    directory, _, name = path.removesuffix("/").rpartition("/")
    return pattern.matches(state_of(pattern, directory), name, path.endswith("/"))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.csv", ["a.csv", "d/e/a.csv", ".csv", "a.csv/below", "\n.csv"], ["a.csvx", "a.csv\n", "csv"]),
        ("/*.csv", ["a.csv", "a.csv/below"], ["d/a.csv"]),
        ("raw", ["raw", "raw/", "a/raw/x/y"], ["raws", "Raw"]),
        ("raw/", ["raw/", "a/raw/", "raw/x", "a/raw/x/y"], ["raw", "a/raw"]),
        ("/raw", ["raw", "raw/x"], ["a/raw", "a/raw/x"]),
        ("a/b", ["a/b", "a/b/c"], ["x/a/b", "a/c/b", "a"]),
        ("/raw/**", ["raw/x", "raw/x/", "raw/x/y"], ["raw", "raw/", "a/raw/x"]),
        ("**/raw", ["raw", "a/raw", "a/b/raw/x"], ["rawx"]),
        ("**/a/b", ["a/b", "x/y/a/b"], ["a/x/b"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b", "a/b/c"], ["b", "a/x", "x/a/b"]),
        ("a/**/b/**/c", ["a/b/c", "a/1/b/2/3/c/d", "a/b/b/c"], ["a/c/b", "a/b"]),
        ("**", ["a", "a/b", "\n"], []),
        ("*", ["a", "a/b", ".hidden", "\n", "\udcff"], []),
        ("/**", ["a", "a/b"], []),
        ("*/", ["a/", "a/b"], ["a"]),
        ("a?c", ["abc", "a\nc", "aäc", "a\udcffc"], ["ac", "abbc", "a/c"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "x"]),
        ("[!a-c]x", ["dx", "\nx"], ["ax", "x"]),
        ("[^a]x", ["bx"], ["ax"]),
        ("[]-]", ["]", "-"], ["a"]),
        ("[-a]", ["-", "a"], ["b"]),
        ("[a-]", ["-", "a"], ["b"]),
        (r"[\]a]", ["]", "a"], ["\\"]),
        (r"[a\-c]", ["a", "-", "c"], ["b"]),
        (r"[^\^]", ["a"], ["^"]),
        (r"\*\*", ["**", "a/**"], ["a", "a/b"]),
        (r"\!x", ["!x"], ["x"]),
        (r"\#x", ["#x"], ["x"]),
        ("a*b*c", ["abc", "a1b2c", "abbcc", "a\nb\nc"], ["acb", "abcd", "xabc"]),
        ("a***c", ["ac", "abc"], ["a"]),
        ("*a*", ["a", "bab"], ["b"]),
        ("***", ["a"], []),
        ("a b", ["a b"], ["a"]),
        ("a.c", ["a.c"], ["abc"]),
        ("ä*", ["ä", "äx"], ["a"]),
        ("**.py", ["x.py", "a/x.py"], ["x.pyc"]),
    ],
)
def test_what_matches(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [path for path in yes if not matches(pattern, path)] == []
    assert [path for path in no if matches(pattern, path)] == []


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "missing"),
        ("x" * 5000, "longer"),
        ("a\nb", "one line"),
        ("a\0b", "one line"),
        ("!a", "allow rule"),
        ("#a", "comment"),
        ("/", "something between"),
        ("//a", "something between"),
        ("a//b", "something between"),
        ("a/../b", "no names"),
        ("./a", "no names"),
        ("**/", "ambiguous"),
        ("a/**/", "ambiguous"),
        ("/".join("a" * 65), "components"),
        ("a\\", "escapes nothing"),
        ("a\\/b", "escapes nothing"),
        ("[abc", "not closed"),
        ("[]", "not closed"),
        ("[!]", "not closed"),
        ("[[:alpha:]]", "not supported"),
        ("[z-a]", "not understood"),
        (" ", "matches nothing"),
    ],
)
def test_what_is_no_pattern(pattern: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Pattern(pattern)


def test_states_tell_what_is_below() -> None:
    pattern = Pattern("/data/*/out/**")
    assert state_of(pattern, "other") == 0
    assert state_of(pattern, "data/x") == state_of(pattern, "data/y") != 0
    assert state_of(pattern, "data/x/out") not in (0, pattern.covered)
    assert state_of(pattern, "data/x/out/any") == pattern.covered
    assert state_of(pattern, "data/x/out/any/more") == pattern.covered
    assert "data" in repr(pattern)


def test_work_is_bounded() -> None:
    """Names that make an expression with backtracking run for years."""
    pattern = Pattern("**/a/**/a/**/a/**/*a*a*a*a*a*b")
    deep = "/".join(["a"] * 500)
    assert not matches(pattern.text, f"{deep}/{'a' * 255}")
    assert matches(pattern.text, f"{deep}/{'a' * 254}b")


def pathspec_says(text: str, path: str, directory: bool) -> bool:
    text = re.sub(r"(\*\*/)+(?=\*\*)", "", text)  # two in a row are one, here as for git
    # All that is inside a directory is not the directory, which the slash would make of it.
    shown = path + "/" if directory and not text.endswith("/**") else path
    return bool(GitIgnoreSpecPattern(text).match_file(shown))


parts = st.sampled_from(["a", "b", "*", "**", "?", "a*", "*b", "[ab]", "[!a]", "\\a", "aa", "*a*b", "\\*"])
texts = st.builds(
    lambda top, middle, end: top + "/".join(middle) + end,
    st.sampled_from(["", "/"]), st.lists(parts, min_size=1, max_size=4), st.sampled_from(["", "/"]),
)  # fmt: skip
paths = st.lists(st.sampled_from(["a", "b", "aa", "ab", "c", "*"]), min_size=1, max_size=4).map("/".join)


@given(texts, paths, st.booleans())
@example("a/**/b", "a/b", False)
@example("**/**", "a", False)
def test_agrees_with_pathspec(text: str, path: str, directory: bool) -> None:
    try:
        Pattern(text)
    except ValueError:
        return
    assert matches(text, path + "/" if directory else path) == pathspec_says(text, path, directory)


@given(texts, st.lists(paths, min_size=2, max_size=2), paths)
def test_a_larger_state_matches_no_less(text: str, places: list[str], below: str) -> None:
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    first, second = (state_of(pattern, place) for place in places)
    matched = [matches(text, f"{place}/{below}") for place in places]
    if second == pattern.covered or not first & ~second:
        assert matched[0] <= matched[1]
    if not first:
        assert not matched[0]
