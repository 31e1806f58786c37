"""Who may do what to which path: rules, and the pure decision over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4
DELETE: Final = 8
RIGHTS: Final = {"read": READ, "write": WRITE, "execute": EXECUTE, "delete": DELETE}


@dataclass(frozen=True, slots=True)
class Rule:
    """``allow`` or deny the ``rights`` (a set of bits) on what the gitignore-style ``pattern`` matches.

    ``source`` says for people where the rule stands: ``tenant physics, rule 3``.
    """

    allow: bool
    rights: int
    pattern: str
    source: str
