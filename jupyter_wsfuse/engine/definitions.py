"""Definitions of tenants, from plain data or from YAML, with errors that say where and what.

A file::

    defaults:                       # what every tenant has unless it says otherwise
      limits: {bytes_out: 50 MiB}
      rules: ["deny all .ssh/"]
    tenants:
      physics:
        root: /srv/physics
        users: [ann]                # ["*"]: everyone
        groups: [physicists]
        rules: ["deny write,delete /raw/**"]
        group_rules: {students: ["deny delete *"]}
        quota: 500 GiB
      home:
        root: /srv/home/{user}      # a tenant home/NAME for each
        users: ["*"]

Plain data is the table below ``tenants``. Everything else is in :data:`_KEYS` and in the dataclasses of
:mod:`.tenants`, whose fields are the keys of ``limits``, ``session_limits`` and ``audit``.
"""

from __future__ import annotations

import difflib
import math
import os
import stat
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NoReturn, TypeVar

import yaml

from ..units import parse_duration, parse_size
from . import permissions
from .permissions import Rule
from .tenants import EVERYONE, USER, AuditOptions, ConfigurationError, Definition, Limits, Tenant

T = TypeVar("T")

#: Bytes of the largest file, and how deep lists and tables in it may be nested.
MAX_FILE: Final = 1 << 20
_DEPTH: Final = 8
_SHOWN: Final = 60  # characters of a wrong value that a message repeats

_RATES: Final = ("metadata", "read", "write", "delete")
_BYTES: Final = ("bytes_in", "bytes_out")
_COUNTS: Final = ("sessions", "handles", "in_flight")
_LIMITS: Final = (*_RATES, *_BYTES, *_COUNTS, "max_wait", "refuse")
_RECORD: Final = ("all", "mutations", "denials", "off")
_ON_FAILURE: Final = ("refuse", "continue")
_AUDIT: Final = ("record", "on_failure", "segment_bytes", "segment_age", "retention", "max_bytes")
_DEFAULTS: Final = (
    "read_only", "raw_owner", "follow_roots", "create", "rules", "group_rules", "hide", "limits", "session_limits",
    "quota", "weight", "audit",
)  # fmt: skip
_KEYS: Final = ("root", "users", "groups", *_DEFAULTS)
_SEGMENT_MIN: Final = 1024


class Value:
    """A piece of a definition that knows where it stands: ``data`` is a scalar, a list of values, or a table of
    values by name."""

    __slots__ = ("data", "key", "place")

    def __init__(self, data: Any, key: str, place: str = "") -> None:
        self.data = data
        self.key = key
        self.place = place

    @classmethod
    def of(cls, data: object, key: str, depth: int = _DEPTH) -> Value:
        """Plain data, as from JSON."""
        value = cls(None, key)
        if isinstance(data, Mapping):
            value._too_deep(depth)
            value.data = {}
            for name, item in data.items():
                if not isinstance(name, str):
                    cls(name, f"{key}.{name}").fail("must be a text")
                value.data[name] = cls.of(item, f"{key}.{name}", depth - 1)
        elif isinstance(data, list | tuple):
            value._too_deep(depth)
            value.data = [cls.of(item, f"{key}[{number}]", depth - 1) for number, item in enumerate(data, 1)]
        else:
            value.data = data
        return value

    def _too_deep(self, depth: int) -> None:
        if not depth:
            self.fail("is nested too deep")

    def fail(self, message: str) -> NoReturn:
        key = f"{self.key}: " if self.key else ""
        raise ConfigurationError(f"{self.place}{key}{message}")

    def wrong(self, expected: str) -> NoReturn:
        """*expected* goes on after "must be"."""
        data = self.data
        shown = "a table" if isinstance(data, dict) else "a list" if isinstance(data, list) else repr(data)
        if data is None:
            shown = "nothing"
        shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
        self.fail(f"must be {expected}, not {shown}")

    # --- what it is expected to be

    def table(self, known: Collection[str] | None = None) -> dict[str, Value]:
        if not isinstance(self.data, dict):
            self.wrong("a table of names and values")
        for name, item in self.data.items():
            if known is not None and name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"is {close[0]} meant?" if close else f"known are {', '.join(known)}"
                item.fail(f"is no key that is known here; {hint}")
        return self.data

    def items(self, what: str) -> list[Value]:
        if not isinstance(self.data, list):
            self.wrong(f"a list of {what}")
        return self.data

    def text(self, what: str, *, printable: bool = True) -> str:
        if isinstance(self.data, bool | int | float):
            self.wrong(f"{what} (put it in quotes)")
        if not isinstance(self.data, str) or not self.data or (printable and not self.data.isprintable()):
            self.wrong(f"{what} that is not empty" + (", in characters that show" if self.data else ""))
        return self.data

    def flag(self) -> bool:
        if not isinstance(self.data, bool):
            self.wrong("true or false")
        return self.data

    def one_of(self, choices: Collection[str]) -> str:
        data = (
            "off" if self.data is False and "off" in choices else self.data
        )  # YAML reads a plain off as false
        if not isinstance(data, str) or data not in choices:
            self.wrong("one of " + ", ".join(choices))
        return data

    def number(self) -> float:
        data = self.data
        if (
            isinstance(data, bool)
            or not isinstance(data, int | float)
            or not math.isfinite(data)
            or data <= 0
        ):
            self.wrong("a number greater than 0")
        return float(data)

    def count(self) -> int:
        data = self.data
        if isinstance(data, bool) or not isinstance(data, int | float) or not (data >= 1 and data % 1 == 0):
            self.wrong("a whole number of at least 1")
        return int(data)

    def size(self, least: int) -> int:
        """Bytes."""
        try:
            size = parse_size(self.data)
        except ValueError as exc:
            self.wrong(str(exc).removeprefix("must be "))
        if size < least:
            self.wrong(f"at least {least} bytes")
        return size

    def duration(self, least: float = 0.0) -> float:
        """Seconds."""
        try:
            duration = parse_duration(self.data)
        except ValueError as exc:
            self.wrong(str(exc).removeprefix("must be "))
        if duration < least:
            self.wrong(f"at least {least:g} seconds")
        return duration

    def folder(self) -> bytes:
        data = self.data
        if not isinstance(data, str) or not os.path.isabs(data) or "\0" in data:
            self.wrong("the absolute path of a folder")
        if ".." in data.split("/"):
            self.wrong("the path of a folder without '..' in it")
        try:
            return os.fsencode(data)
        except UnicodeEncodeError:
            self.wrong("the path of a folder in characters that exist")


def _or_none(value: Value, read: Callable[[], T]) -> T | None:
    return None if value.data is None else read()


# --- the parts of a tenant


def _limits(tables: list[Value]) -> Limits:
    found: dict[str, Any] = {}
    for value in tables:
        for name, item in value.table(_LIMITS).items():
            if name in _RATES:
                found[name] = _or_none(item, item.number)
            elif name in _BYTES:
                if isinstance(item.data, str):
                    item = Value(item.data.removesuffix("/s"), item.key, item.place)
                size = item
                found[name] = _or_none(size, lambda size=size: float(size.size(1)))  # type: ignore[misc]
            elif name in _COUNTS:
                found[name] = _or_none(item, item.count)
            elif name == "max_wait":
                found[name] = item.duration()
            else:
                found[name] = item.flag()
    return Limits(**found)


def read_limits(table: Mapping[str, object], key: str = "limits") -> Limits:
    """Limits from plain data with the names of :class:`.Limits`."""
    return _limits([Value.of(table, key)])


def _audit(tables: list[Value]) -> AuditOptions:
    found: dict[str, Any] = {}
    for value in tables:
        for name, item in value.table(_AUDIT).items():
            if name == "record":
                found[name] = item.one_of(_RECORD)
            elif name == "on_failure":
                found[name] = item.one_of(_ON_FAILURE)
            elif name == "segment_bytes":
                found[name] = item.size(_SEGMENT_MIN)
            elif name == "max_bytes":
                found[name] = item.size(0)
            elif name == "segment_age":
                found[name] = item.duration(1.0)
            else:
                found[name] = item.duration()
    return AuditOptions(**found)


def _rules(value: Value, owner: str) -> tuple[Rule, ...]:
    rules = []
    for number, item in enumerate(value.items('rules, each as "deny write,delete /raw/**"'), 1):
        try:
            rules.append(
                permissions.parse_rule(item.text("a rule", printable=False), f"{owner}, rule {number}")
            )
        except ValueError as exc:
            item.fail(str(exc))
    return tuple(rules)


def _names(value: Value, what: str) -> frozenset[str]:
    names = [item.text(f"the name of a {what}") for item in value.items(f"names of {what}s")]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        value.fail(f"names the {what} {twice} twice")
    return frozenset(names)


def _definition(name: str, value: Value, defaults: Mapping[str, Value], *, for_all: bool) -> Definition:
    """*for_all*: without users and groups it is everyone's."""
    own = value.table(_KEYS)
    options = {**defaults, **own}

    def tables(key: str) -> list[Value]:
        return [table[key] for table in (defaults, own) if key in table]

    def read(key: str, reader: Callable[[Value], T], otherwise: T) -> T:
        return reader(options[key]) if key in options else otherwise

    if "root" not in own:
        value.fail("needs a root, the absolute path of a folder")
    root = own["root"].folder()
    template = USER.encode() in root
    parts = [part for part in root.split(b"/") if part not in (b"", b".")]
    first = next((index for index, part in enumerate(parts) if USER.encode() in part), len(parts) - 1)
    listed = options["follow_roots"].items("folders") if "follow_roots" in options else []
    follow = [(item, item.folder()) for item in listed]
    for item, folder in follow:
        if USER.encode() in folder and not template:
            item.fail(f"can have {USER} in it only if root has")
    users = _names(own["users"], "user") if "users" in own else frozenset()
    groups = _names(own["groups"], "group") if "groups" in own else frozenset()
    if not users and not groups:
        if not for_all:
            value.fail(f'needs users or groups, or nobody can use it; users: ["{EVERYONE}"] is everyone')
        users = frozenset({EVERYONE})
    owners = [(defaults, "defaults"), (own, f"tenant {name}")]
    group_rules: dict[str, tuple[Rule, ...]] = {}
    for table, owner in owners:
        if "group_rules" in table:
            for group, listed_rules in table["group_rules"].table().items():
                rules = _rules(listed_rules, f"{owner}, group {group}")
                group_rules[group] = group_rules.get(group, ()) + rules
    tenant = Tenant(
        name=name,
        root=b"/" + b"/".join(parts),
        read_only=read("read_only", Value.flag, False),
        raw_owner=read("raw_owner", Value.flag, False),
        follow_roots=tuple(folder for _, folder in follow),
        create=read("create", Value.flag, template),
        own=max(1, len(parts) - first),
        rules=tuple(
            rule for table, owner in owners if "rules" in table for rule in _rules(table["rules"], owner)
        ),
        group_rules=group_rules,
        hide=read("hide", Value.flag, False),
        limits=_limits(tables("limits")),
        session_limits=_limits(tables("session_limits")),
        quota=read("quota", lambda quota: _or_none(quota, lambda: quota.size(1)), None),
        weight=read("weight", Value.number, 1.0),
        audit=_audit(tables("audit")),
    )
    return Definition(tenant, users, groups)


def _definitions(tenants: Value, defaults: Mapping[str, Value], *, for_all: bool) -> list[Definition]:
    if not isinstance(tenants.data, dict) or not tenants.data:
        tenants.wrong("a table with at least one tenant")
    definitions = []
    for name, value in tenants.data.items():
        if not name or len(name) > 100 or "/" in name or not name.isprintable():
            value.fail(
                "a tenant's name must be a text that is not empty, of at most 100 characters, without '/'"
            )
        definitions.append(_definition(name, value, defaults, for_all=for_all))
    return definitions


def from_table(config: object) -> list[Definition]:
    """The definitions in plain data. Raises :class:`ConfigurationError`."""
    return _definitions(Value.of(config, "tenants"), {}, for_all=True)


# --- files


def read_text(path: str | os.PathLike[str]) -> bytes:
    """What the file *path* holds, unless it cannot be trusted. Raises :class:`ConfigurationError`."""
    try:
        # Not to wait for somebody who writes, if it is a fifo.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigurationError(f"{os.fspath(path)}: is not a regular file")
            if mode & stat.S_IWOTH:
                raise ConfigurationError(
                    f"{os.fspath(path)}: everyone may write to it, and with it to all that is served; "
                    "take that right away (chmod o-w)"
                )
            text = file.read(MAX_FILE + 1)
    except OSError as exc:
        raise ConfigurationError(f"{os.fspath(path)}: cannot be read: {exc.strerror}") from None
    if len(text) > MAX_FILE:
        raise ConfigurationError(f"{os.fspath(path)}: is larger than {MAX_FILE} bytes")
    return text


class _Composer:
    """YAML nodes to values. A node that is referred to several times is converted each time, for its key; the
    budget bounds what that can add up to."""

    def __init__(self, loader: yaml.SafeLoader, source: str) -> None:
        self._loader = loader
        self._source = source
        self._budget = 100_000

    def value(self, node: yaml.Node, key: str, line: int, depth: int = _DEPTH) -> Value:
        value = Value(None, key, f"{self._source}:{line}: ")
        self._budget -= 1
        if not depth or self._budget < 0:
            value.fail("is nested too deep, or too large")
        if isinstance(node, yaml.MappingNode):
            value.data = self._table(node, key, depth)
        elif isinstance(node, yaml.SequenceNode):
            value.data = [
                self.value(item, f"{key}[{number}]", item.start_mark.line + 1, depth - 1)
                for number, item in enumerate(node.value, 1)
            ]
        else:
            value.data = self._scalar(node, value)
        return value

    def _scalar(self, node: yaml.Node, value: Value) -> Any:
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as exc:  # an unknown tag, or a date that does not exist
            problem = getattr(exc, "problem", None) or str(exc)
            value.fail(f"cannot be read: {problem}")

    def _table(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Value]:
        table: dict[str, Value] = {}
        lines: dict[str, int] = {}
        for name_node, item in node.value:
            line = name_node.start_mark.line + 1
            name = None
            if isinstance(name_node, yaml.ScalarNode):
                name = self._scalar(name_node, Value(None, key, f"{self._source}:{line}: "))
            if not isinstance(name, str):
                shown = "a list or a table" if name is None else repr(name)
                Value(name, key, f"{self._source}:{line}: ").fail(
                    f"names must be texts, not {shown} (put it in quotes)"
                )
            child = f"{key}.{name}" if key else name
            if name in table:
                Value(None, child, f"{self._source}:{line}: ").fail(
                    f"is given twice, first in line {lines[name]}"
                )
            lines[name] = line
            table[name] = self.value(item, child, line, depth - 1)
        return table


def from_yaml(text: bytes, source: str) -> list[Definition]:
    """The definitions in the *text* of the file *source*. Raises :class:`ConfigurationError`, ``FILE:LINE: key:
    what is wrong``."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise ConfigurationError(f"{source}:1: the file is empty; it must have a table of tenants")
            whole = _Composer(loader, source).value(node, "", node.start_mark.line + 1)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = 1 if mark is None else mark.line + 1
        problem = " ".join(filter(None, (exc.context, exc.problem)))
        raise ConfigurationError(f"{source}:{line}: this is no YAML: {problem}") from None
    except (yaml.YAMLError, RecursionError) as exc:
        problem = " ".join(str(exc).split()) if isinstance(exc, yaml.YAMLError) else "nested too deep"
        raise ConfigurationError(f"{source}:1: this is no YAML: {problem}") from None
    table = whole.table(("tenants", "defaults"))
    if "tenants" not in table:
        whole.fail("tenants: is missing; it must be a table with at least one tenant")
    defaults = table["defaults"].table(_DEFAULTS) if "defaults" in table else {}
    return _definitions(table["tenants"], defaults, for_all=False)
