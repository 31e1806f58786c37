"""Who may do what to which path: rules, and the pure decision over them.

A rule allows or denies rights on what a pattern (:mod:`.patterns`) matches; of the rules that match, the last
one decides, for each right on its own; where none does, everything is allowed. Paths are bytes relative to
the workspace, without slashes at the ends, ``b""`` for its top. One that begins with a slash lies in a folder
outside of it that links may lead to; rules hold there as if that folder were a workspace.

Rights on a directory: ``read`` is to list it, ``write`` to change what it is itself (mode, times, extended
attributes), ``execute`` to find names in it, also called ``search``. Making, removing and renaming are rights
on the name that comes or goes. A directory that may not be searched closes the way to everything below it but
what a later rule allows.

Nothing here looks at a file system. Everything may be used from several threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, NamedTuple, TypeVar

from ..errors import DeniedError
from .patterns import Pattern

READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4
DELETE: Final = 8
#: Of rules only: the right to execute, for directories alone.
SEARCH: Final = 16
#: Of a :class:`View` only: to list a directory, perhaps without what is hidden; to see that it exists.
LIST: Final = 32
SEE: Final = 64
ALL: Final = READ | WRITE | EXECUTE | DELETE
RIGHTS: Final = {"read": READ, "write": WRITE, "execute": EXECUTE, "delete": DELETE}

_WORDS: Final = {**RIGHTS, "search": SEARCH, "all": ALL}
_BITS: Final = tuple(RIGHTS.values())
_DEFAULT: Final = "the default"
#: Bytes of decisions, and as many again of older ones, that a set of rules remembers.
CACHE_BYTES: Final = 1 << 20
_ENTRY_BYTES: Final = 250  # of a remembered decision, beside its path and a number for each rule


@dataclass(frozen=True, slots=True)
class Rule:
    """``allow`` or deny the ``rights`` (a set of bits) on what the gitignore-style ``pattern`` matches.

    ``source`` says for people where the rule stands: ``tenant physics, rule 3``.
    """

    allow: bool
    rights: int
    pattern: str
    source: str

    def __str__(self) -> str:
        rights = "all" if self.rights & ALL == ALL else ",".join(_words(self.rights))
        return f"{self.source}: {'allow' if self.allow else 'deny'} {rights} {self.pattern}"


def _words(rights: int) -> Iterable[str]:
    return (word for word, bit in _WORDS.items() if word != "all" and rights & bit)


def parse_rule(text: str, source: str) -> Rule:
    """The rule ``deny write,delete /raw/**`` or ``allow all *.csv``.

    Rights are ``read``, ``write``, ``execute``, ``delete``, ``search`` (``execute``, for directories alone),
    ``all``, with commas between them. Raises ValueError, whose text says what is wrong and what is expected.
    """
    found = re.fullmatch(r"\s*(\S+)(?:\s+(\S+))?(?:[ \t]+(.*))?", text, re.DOTALL)
    if found is None:
        raise ValueError("a rule is 'allow' or 'deny', rights, and a pattern: 'deny write,delete /raw/**'")
    action, words, pattern = found[1].lower(), found[2], found[3] or ""
    if action not in ("allow", "deny"):
        raise ValueError(f"a rule begins with 'allow' or 'deny', not with {found[1]!r}")
    rights = 0
    for word in (words or "").lower().split(","):
        if word not in _WORDS:
            raise ValueError(f"{word!r} is no right: expected {', '.join(_WORDS)}, with commas between them")
        rights |= _WORDS[word]
    stripped = pattern.rstrip(" \t\r\n")
    if len(stripped) < len(pattern) and (len(stripped) - len(stripped.rstrip("\\"))) % 2:
        stripped += " "  # that blank is escaped
    Pattern(stripped)
    return Rule(action == "allow", rights, stripped, source)


class Decision(NamedTuple):
    """``rule``: where the deciding rule stands and what it says, or "the default"."""

    allowed: bool
    rule: str


class _State(NamedTuple):
    """What the rules know of a directory: the state of each pattern, and the last rule that forbids to search
    it or a directory on the way to it (-1: none)."""

    patterns: tuple[int, ...]
    barrier: int


class Verdict(NamedTuple):
    """All that the rules say about one path.

    ``allowed``: rights. ``deciding``: the number of the rule that decided each of :data:`RIGHTS`, in order, -1
    for the default. ``leads``: something below it may be read although it may not itself. ``closes``: the
    number of the rule that forbids to search it but for what a later one allows, ``barrier``: the one that
    closes the way to it; or -1.
    """

    allowed: int
    deciding: tuple[int, ...]
    leads: bool
    closes: int
    barrier: int


class View(NamedTuple):
    """``allowed``: rights, with :data:`SEE`, and :data:`LIST` for directories; 0 if the way to it is closed, by
    the rule of the number ``barrier`` (else -1). ``hidden``: it is to be as if it did not exist."""

    allowed: int
    hidden: bool
    barrier: int


class Answers(NamedTuple):
    """What is remembered of one path: the verdict of the rules, and what follows without a scope, where names
    are shown, and where they are hidden."""

    verdict: Verdict
    showing: View
    hiding: View


def _view(verdict: Verdict, directory: bool, hide: bool) -> View:
    if verdict.barrier >= 0:
        return View(0, hide and not verdict.allowed & READ and not verdict.leads, verdict.barrier)
    allowed = verdict.allowed
    if allowed & READ or (hide and verdict.leads):
        return View(allowed | (LIST | SEE if directory else SEE), False, -1)
    return View(allowed if hide else allowed | SEE, hide, -1)


K = TypeVar("K")


class _Memory(Generic[K]):
    """The values last used, by path: when those of one generation weigh too much, the one before is dropped.

    Single dictionary operations only, so that threads can at worst forget something.
    """

    def __init__(self, weight: int) -> None:
        self._weight = weight
        self._young: dict[bytes, K] = {}
        self._old: dict[bytes, K] = {}
        self._used = 0

    def get(self, path: bytes) -> K | None:
        value = self._young.get(path)
        if value is None:
            value = self._old.get(path)
            if value is not None:
                self.put(path, value)
        return value

    def put(self, path: bytes, value: K) -> None:
        self._used += len(path) + self._weight
        if self._used > CACHE_BYTES:
            self._used = 0
            self._old, self._young = self._young, {}
        self._young[path] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


def split(path: bytes) -> tuple[bytes, bytes]:
    """The directory of *path*, and its name there."""
    cut = path.rfind(b"/")
    if cut > 0:
        return path[:cut], path[cut + 1 :]
    return path[: cut + 1], path[cut + 1 :]


def join(directory: bytes, name: bytes) -> bytes:
    """The opposite of :func:`split`."""
    return directory + b"/" + name if directory and directory != b"/" else directory + name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class RuleSet:
    """Rules in the order in which they are given. Bounded in memory; raises ValueError for a bad pattern."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._patterns = [Pattern(rule.pattern) for rule in rules]
        self._top = _State(tuple(pattern.start for pattern in self._patterns), -1)
        # Rights of a rule on files, and on directories.
        self._rights = [
            (rule.rights & ALL, rule.rights & ALL | (EXECUTE if rule.rights & SEARCH else 0))
            for rule in rules
        ]
        self._states: _Memory[_State] = _Memory(_ENTRY_BYTES + 8 * len(rules))
        self._files: _Memory[Answers] = _Memory(_ENTRY_BYTES)
        self._directories: _Memory[Answers] = _Memory(_ENTRY_BYTES)

    def decide(self, path: bytes, directory: bool, right: int) -> Decision:
        """May that be done to *path* itself? The way to it is another question."""
        number = self.verdict(path, directory).deciding[_BITS.index(right)]
        return Decision(number < 0 or self.rules[number].allow, self.name(number))

    def name(self, number: int) -> str:
        return _DEFAULT if number < 0 else str(self.rules[number])

    def verdict(self, path: bytes, directory: bool) -> Verdict:
        return self.answers(path, directory).verdict

    def answers(self, path: bytes, directory: bool) -> Answers:
        memory = self._directories if directory else self._files
        answers = memory.get(path)
        if answers is None:
            parent, name = split(path)
            state = self.state(parent) if name else self._top
            verdict = self.judge(state, _text(name), directory)
            answers = Answers(verdict, *(_view(verdict, directory, hide) for hide in (False, True)))
            memory.put(path, answers)
        return answers

    def state(self, directory: bytes) -> _State:
        """What is known of *directory*, which :meth:`judge` needs for what is in it."""
        if directory in (b"", b"/"):
            return self._top
        state = self._states.get(directory)
        if state is None:
            state = self._top
            way, last = split(directory)
            for name in way.split(b"/"):
                if name:
                    state = self._enter(state, _text(name))
            state = self._enter(state, _text(last))
            self._states.put(directory, state)
        return state

    def _enter(self, state: _State, name: str) -> _State:
        verdict = self.judge(state, name, True)
        steps = zip(self._patterns, state.patterns, strict=True)
        return _State(
            tuple(pattern.step(before, name) for pattern, before in steps), max(state.barrier, verdict.closes)
        )

    def judge(self, state: _State, name: str, directory: bool) -> Verdict:
        """The verdict on the entry *name* of a directory of *state*; "" is the top itself."""
        allowed, undecided = 0, ALL
        deciding = [-1, -1, -1, -1]
        closes = leading = -1  # leading: an allow rule that may match something below
        leads = False
        opened = state.barrier < 0
        for number in range(len(self.rules) - 1, -1, -1):
            before = state.patterns[number]
            if not before or not name:
                continue
            rule, pattern = self.rules[number], self._patterns[number]
            matches = pattern.matches(before, name, directory)
            if rule.allow:
                below = directory and pattern.step(before, name)
                opened = opened or (number > state.barrier and bool(matches or below))
                if below:
                    leading = max(leading, number)
                    leads = leads or bool(rule.rights & READ & undecided)
            hit = self._rights[number][directory] & undecided if matches else 0
            if not hit:
                continue
            undecided ^= hit
            if rule.allow:
                allowed |= hit
            for index, bit in enumerate(_BITS):
                if hit & bit:
                    deciding[index] = number
            if directory and hit & EXECUTE and not rule.allow:
                closes = number
                if leading >= 0:  # it is open for what that rule may allow, and for nothing else
                    allowed |= EXECUTE
                    deciding[_BITS.index(EXECUTE)] = leading
        return Verdict(allowed | undecided, tuple(deciding), leads, closes, -1 if opened else state.barrier)

    def gained(self, old: bytes, new: bytes, directory: bool) -> str:
        """The rule that keeps something from *old*, or from what may be below it, but would not at *new*.

        "" if moving cannot give any right. Never "" wrongly: of directories all is assumed to be below.
        """
        before, after = self.verdict(old, directory), self.verdict(new, directory)
        for index, bit in enumerate(_BITS):
            if after.allowed & ~before.allowed & bit:
                return self.name(before.deciding[index])
        if not directory:
            return ""
        here, there = self.state(old), self.state(new)
        for rule, pattern, was, will in zip(
            self.rules, self._patterns, here.patterns, there.patterns, strict=True
        ):
            more, less = (will, was) if rule.allow else (was, will)
            if less != pattern.covered and more & ~less:
                return str(rule)
        # A rule that closes a directory on the way covers all below it: it has been compared as well.
        return ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token is good for: ``rights`` on ``paths`` (relative, no slash at the ends; ``b""`` is everything)
    and what is below them. ``source`` names the token for people."""

    paths: tuple[bytes, ...]
    rights: int
    source: str

    @property
    def everything(self) -> bool:
        return b"" in self.paths

    def covers(self, path: bytes) -> bool:
        return self.everything or any(path == own or path.startswith(own + b"/") for own in self.paths)

    def leads(self, path: bytes) -> bool:
        """Whether *path* is a directory above one of the paths."""
        way = path + b"/" if path else b""
        return any(own.startswith(way) for own in self.paths)


class Policy:
    """What one session may do: rules, *and* the scope of its token if it has one.

    ``hide``: names that may not be read are not found and not listed, but for directories with something below
    that may be. What is outside of the scope's paths is always hidden, the directories above them show only the
    way. ``unrestricted``: everything is allowed, nobody needs to ask.
    """

    __slots__ = ("rules", "scope", "hide", "unrestricted")
    OPEN: ClassVar[Policy]

    def __init__(self, rules: RuleSet, scope: Scope | None = None, *, hide: bool = False) -> None:
        self.rules = rules
        self.scope = scope
        self.hide = hide
        self.unrestricted = not rules.rules and (
            scope is None or (scope.everything and scope.rights & ALL == ALL)
        )

    @property
    def hides(self) -> bool:
        """Whether there may be names that the session must not learn of."""
        return (self.hide and not self.unrestricted) or (self.scope is not None and not self.scope.everything)

    def view(self, path: bytes, directory: bool) -> View:
        """All about one path at once."""
        answers = self.rules.answers(path, directory)
        view = answers.hiding if self.hide else answers.showing
        return view if self.scope is None else self._scoped(self.scope, path, directory, view)

    @staticmethod
    def _scoped(scope: Scope, path: bytes, directory: bool, view: View) -> View:
        if scope.covers(path):
            mask = scope.rights | SEE
            if directory:
                mask |= EXECUTE | (LIST if mask & READ else 0)
        elif directory and scope.leads(path):
            mask = EXECUTE | LIST | SEE
        else:
            return View(0, True, view.barrier)
        return View(view.allowed & mask, view.hidden, view.barrier)

    def decide(self, path: bytes, directory: bool, right: int) -> Decision:
        """Whether ``right``, one of :data:`RIGHTS`, is given on *path*, and by what."""
        scope = self.scope
        if scope is not None:
            if not scope.covers(path):
                if not (directory and scope.leads(path)):
                    return Decision(False, f"{scope.source}: not in its paths")
                if right != EXECUTE:
                    return Decision(False, f"{scope.source}: not in its paths, only on the way to them")
            elif not scope.rights & right and not (directory and right == EXECUTE):
                given = ", ".join(_words(scope.rights)) or "nothing"
                return Decision(False, f"{scope.source}: it gives {given}")
        verdict = self.rules.verdict(path, directory)
        if verdict.barrier >= 0:
            return Decision(False, self.rules.name(verdict.barrier))
        return self.rules.decide(path, directory, right)

    def check(self, path: bytes, directory: bool, rights: int) -> None:
        """Raise :class:`DeniedError` unless all of *rights* (0: only the way) are given on *path*."""
        view = self.view(path, directory)
        missing = rights & ~view.allowed
        if missing & LIST:
            missing |= READ
        for bit in _BITS:
            if missing & bit or (view.barrier >= 0 and bit == READ):
                raise DeniedError(self.decide(path, directory, bit).rule)

    def hidden(self, path: bytes, directory: bool) -> bool:
        return self.view(path, directory).hidden

    def gained(self, old: bytes, new: bytes, directory: bool) -> str:
        """See :meth:`RuleSet.gained`. Both places are in the scope: who moves has rights on both."""
        return self.rules.gained(old, new, directory)

    def explain(self, path: bytes, directory: bool) -> str:
        """For people, on one line: whether each right is given, and which rule says so."""
        answers = []
        for word, bit in RIGHTS.items():
            allowed, rule = self.decide(path, directory, bit)
            answers.append(f"{word}: {'allowed' if allowed else 'denied'} by {rule}")
        return "; ".join(answers)


Policy.OPEN = Policy(RuleSet(()))
