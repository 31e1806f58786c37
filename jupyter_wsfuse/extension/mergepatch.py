"""Differences between states as JSON merge patches (RFC 7396).

A patch cannot say that something is null, because null removes: states have none in their objects.
"""

from __future__ import annotations

from typing import Any

State = dict[str, Any]


def diff(old: State, new: State) -> State:
    """The merge patch that makes *new* of *old*; empty if they are the same."""
    patch: State = {}
    for name in old.keys() - new.keys():
        patch[name] = None
    for name, value in new.items():
        before = old.get(name)
        if name in old and isinstance(value, dict) and isinstance(before, dict):
            inner = diff(before, value)
            if inner:
                patch[name] = inner
        elif name not in old or not _same(before, value):
            patch[name] = value
    return patch


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def without_null(value: Any) -> Any:
    """*value* with nothing that is null in its objects."""
    if isinstance(value, dict):
        return {str(name): without_null(inner) for name, inner in value.items() if inner is not None}
    return value
