"""Gitignore-style patterns, matched name by name and never backtracking over a whole path.

A pattern is a list of positions, one before each of its components; a *state* is the set of those that a path
has led to, as bits of an integer. A state is all that decides what lies below a path, so it can be kept for a
directory, tells whether something below may still match, and whether two directories are treated alike. The
work is bounded by components of the path times components of the pattern, whatever names somebody makes up.

As in ``.gitignore``: ``*``, ``?`` and ``[...]`` match within a name, ``**/`` any number of directories, ``/**``
all that is inside; a slash at the start or in the middle binds to the top, one at the end means directories
only; what a directory is matched by covers everything below it. Names are compared as text that bytes which
are no UTF-8 are kept in (surrogateescape), a newline is a character like any other.
"""

from __future__ import annotations

import re
from typing import Final

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

#: Components of a pattern, and asterisks in one of them.
MAX_PARTS: Final = 64
MAX_LENGTH: Final = 4096

_DEEP: Final = "**"


class Pattern:
    """*text* without a leading ``!``; ValueError says what is wrong with it.

    :meth:`step` gives the state of a child from that of its directory; :attr:`start` is the top's, and
    :attr:`covered` the one in which everything below matches.
    """

    __slots__ = ("text", "start", "covered", "_parts", "_deep", "_directories_only")

    def __init__(self, text: str) -> None:
        _check(text)
        self.text = text
        body = text.removesuffix("/")
        self._directories_only = body != text
        parts = body.removeprefix("/").split("/")
        if "/" not in body and parts[0] != _DEEP:
            parts.insert(0, _DEEP)
        if parts[-1] == _DEEP:  # all that is inside: any name there, and what that covers
            parts[-1:] = ["*"] if len(parts) > 1 else [_DEEP, "*"]
        self._parts = [_part(part) for part in parts]
        self._deep = sum(1 << index for index, part in enumerate(parts) if part == _DEEP)
        self.covered = 1 << len(parts)
        self.start = self._close(1)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def _close(self, state: int) -> int:
        """Add the positions behind every ``**`` that is reached: it may stand for no directory at all."""
        while state | (state & self._deep) << 1 != state:
            state |= (state & self._deep) << 1
        return state

    def step(self, state: int, name: str) -> int:
        """The state of the directory *name* in a directory of *state*. 0: nothing below can match."""
        if not state or state == self.covered:
            return state
        after = state & self._deep
        rest = state & ~self._deep
        while rest:
            bit = rest & -rest
            rest ^= bit
            part = self._parts[bit.bit_length() - 1]
            if part is None or (part == name if isinstance(part, str) else part.match(name)):
                after |= bit << 1
        return self.covered if after & self.covered else self._close(after)

    def matches(self, state: int, name: str, directory: bool) -> bool:
        """Whether the entry *name* of a directory of *state* matches."""
        if state == self.covered:
            return True
        return (directory or not self._directories_only) and self.step(state, name) == self.covered


def _check(text: str) -> None:
    if not text:
        raise ValueError("the pattern is missing")
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the pattern is longer than {MAX_LENGTH} characters")
    if "\0" in text or "\n" in text or "\r" in text:
        raise ValueError("a pattern is one line of text")
    if text.startswith("!"):
        raise ValueError(
            "a pattern does not begin with '!': write an allow rule (or '\\!' for that character)"
        )
    if text.startswith("#"):
        raise ValueError("the pattern is a comment: write '\\#' for that character")
    if f"/{text}".endswith("/**/"):
        raise ValueError("'**/' at the end is ambiguous: write '*/' for directories or '/**' for all inside")
    parts = text.removesuffix("/").removeprefix("/").split("/")
    if "" in parts:
        raise ValueError("a pattern names something between, before or after its slashes")
    if "." in parts or ".." in parts:
        raise ValueError("'.' and '..' are no names that could match")
    if len(parts) > MAX_PARTS:
        raise ValueError(f"the pattern has more than {MAX_PARTS} components")
    for part in parts:
        _part(part)
    if GitIgnoreSpecPattern.pattern_to_regex(text)[0] is None:
        raise ValueError("the pattern matches nothing")


def _part(part: str) -> re.Pattern[str] | str | None:
    """What one component has to match: a name, an expression, or None for any name."""
    if part == _DEEP:
        return None
    pieces, literal = _pieces(part)
    if literal is not None:
        return literal
    if pieces == ["", ""]:
        return None
    first, last = pieces[0], pieces[-1]
    # After an asterisk the first place where the next piece fits is as good as any other, so it is never
    # given up again (?>...): no name takes longer than its length times that of the pattern.
    middle = "".join(f"(?>.*?{piece})" for piece in pieces[1:-1])
    end = f".*{last}" if len(pieces) > 1 else ""
    try:
        return re.compile(rf"{first}{middle}{end}\Z", re.DOTALL)
    except re.error as error:
        raise ValueError(f"'{part}' is not understood: {error}") from None


def _pieces(part: str) -> tuple[list[str], str | None]:
    """The regular expressions between asterisks, and the name itself if there is nothing special in *part*."""
    pieces, literal = [""], ""
    special = False
    position = 0
    while position < len(part):
        character = part[position]
        position += 1
        if character == "*":
            special = True
            if pieces[-1] or len(pieces) == 1:
                pieces.append("")
            continue
        if character == "?":
            special = True
            pieces[-1] += "."
        elif character == "[":
            special = True
            piece, position = _bracket(part, position)
            pieces[-1] += piece
        else:
            if character == "\\":
                if position == len(part):
                    raise ValueError("a backslash at the end of a name escapes nothing")
                character = part[position]
                position += 1
            pieces[-1] += re.escape(character)
            literal += character
    return pieces, None if special else literal


def _bracket(part: str, position: int) -> tuple[str, int]:
    """The expression for a ``[...]`` whose inside begins at *position*, and where it goes on behind it."""
    end = position + (part[position : position + 1] in ("!", "^"))
    negated = end > position
    items: list[str] = []
    while end < len(part):
        character = part[end]
        end += 1
        if character == "]" and items:
            if items[-1] == "-":
                items[-1] = r"\-"
            return f"[{'^' if negated else ''}{''.join(items)}]", end
        if character == "[" and part[end : end + 1] in (":", ".", "="):
            raise ValueError("classes as in '[[:alpha:]]' are not supported: write the characters")
        if character == "\\":
            items.append(re.escape(part[end : end + 1]))
            end += 1
        else:
            items.append("-" if character == "-" and items else re.escape(character))
    raise ValueError(f"the '[' in '{part}' is not closed")
