"""The running state of one tenant. Two tenants share nothing but the threads that work for them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from cachetools import LRUCache

from ..errors import RefusedError
from ..protocol.tickets import TokenClaims
from . import permissions
from .auditstore import AuditStore
from .hooks import Audit, NullAudit
from .limiter import Limiter
from .locks import LockTable
from .permissions import ALL, Policy, Rule, RuleSet, Scope
from .profiler import Profiler
from .quota import Quota
from .roots import open_root
from .sandbox import Sandbox, proc_path
from .tenants import Limits, Tenant

if TYPE_CHECKING:
    from .session import Session

_LOG = logging.getLogger(__name__)

#: Seconds over which denials of one session are told as one event.
BURST: Final = 2.0
#: Different policies of a tenant that are kept at hand.
POLICIES: Final = 256
_GRANTS: Final = {
    "read": permissions.READ | permissions.EXECUTE,
    "write": permissions.WRITE | permissions.DELETE,
}

Emit = Callable[[dict[str, Any]], None]
#: Raises :class:`OSError` for a folder that the process has bound itself not to touch.
Reach = Callable[[bytes], None]


def _literal(path: str) -> str:
    """A pattern that matches *path* alone."""
    return re.sub(r"([\\*?\[\]!# ])", r"\\\1", path)


def way_to(path: bytes) -> set[bytes]:
    """Where *path* really is, and where every symbolic link stands that leads there: who can put another link, or a
    folder, in the place of one of those decides what is found at *path*."""
    found: set[bytes] = set()
    at, rest = b"/", [part for part in path.split(b"/") if part]
    while rest:
        name = rest.pop(0)
        if name in (b"", b"."):
            continue
        if name == b"..":
            at = os.path.dirname(at)
            continue
        at = os.path.join(at, name)
        try:
            target = os.readlink(at)
        except OSError:  # no link, or nothing yet
            continue
        if at in found:  # a loop: it leads nowhere
            return found
        found.add(at)
        rest = target.split(b"/") + rest
        at = b"/" if target.startswith(b"/") else os.path.dirname(at)
    return {*found, at}


class Workspace:
    """*emit* is told what others outside the engine want to know of; *private*: absolute paths that neither scoped
    tokens nor a right to read alone open. ``sandbox`` is None, and nothing is recorded, until the first session has
    had it opened (:meth:`open`)."""

    def __init__(
        self,
        tenant: Tenant,
        *,
        locks: LockTable,
        profiler: Profiler,
        audits: AuditStore | None,
        emit: Emit,
        reach: Reach,
        private: Sequence[bytes],
    ) -> None:
        self.tenant = tenant
        self.sandbox: Sandbox | None = None
        self.locks = locks
        self.profiler = profiler
        self.limiter = Limiter(tenant.limits)
        self.audit: Audit = NullAudit()
        self.quota: Quota | None = None
        self.sessions: dict[str, Session] = {}
        #: Why changes to it cannot be followed, in words; empty if they can.
        self.unwatchable = ""
        self.denials = 0
        #: Sessions that are being admitted; they count against the number allowed.
        self.admitting = 0
        self._audits = audits
        self._reach = reach
        self._private = private
        #: What keeps some sessions from :attr:`_private`; looking for it reads links on the disk, so :meth:`open` does.
        self._kept_private: list[Rule] = []
        self._emit = emit
        self._tokens: dict[str, Limiter] = {}
        self._policies: LRUCache[tuple[tuple[str, ...], str, bool], Policy] = LRUCache(POLICIES)
        self._denied: dict[Session, tuple[int, str, bytes]] = {}
        self._opening = threading.Lock()

    # --- opening, in a worker thread ------------------------------------------------------------------------

    def open(self) -> Sandbox:
        """The root, made if it has to be, and what goes with it. Blocks. Raises :class:`OSError`."""
        with self._opening:
            sandbox = self.sandbox
            if sandbox is None or not sandbox.stat(sandbox.root_fd).nlink:  # that folder was removed
                for folder in (self.tenant.root, *self.tenant.follow_roots):
                    self._reach(folder)
                fd = open_root(self.tenant)
                try:
                    sandbox = Sandbox(proc_path(fd), follow_roots=self.tenant.follow_roots)
                finally:
                    os.close(fd)
                self.unwatchable = (
                    ""
                    if sandbox.local
                    else (
                        "the workspace lies on a file system whose changes cannot be watched, such as a network's"
                    )
                )
                self._count_anew()
            if isinstance(self.audit, NullAudit) and self._audits is not None:
                self.audit = self._audits.open(self.tenant.name, self.tenant.audit)
            private = self._private_rules()
            if private != self._kept_private:  # links on the way to the keys have changed
                self._kept_private = private
                self._policies = LRUCache(POLICIES)  # another one: the loop may be looking into this
            self.sandbox = sandbox
            return sandbox

    def _count_anew(self) -> None:
        tenant, old = self.tenant, self.quota
        if old is not None:
            old.close()
        self.quota = None
        if tenant.quota is not None:
            self.quota = Quota(tenant.quota, tenant.root, follow=bool(tenant.follow_roots))
            self.quota.start()

    def close(self) -> None:
        """Everything recorded is written. Blocks."""
        self.audit.close()
        if self.quota is not None:
            self.quota.close()

    # --- who may do what, how much --------------------------------------------------------------------------

    def policy(self, groups: tuple[str, ...], token: TokenClaims | None, may_write: bool) -> Policy:
        """The rules for a member of *groups* who came with *token*, and who *may_write* or not; one object for all for
        whom they are the same."""
        mine = tuple(group for group in self.tenant.group_rules if group in groups)
        key = (mine, "" if token is None else token.id, may_write)
        policy: Policy | None = self._policies.get(key)
        if policy is None:
            policy = self._policies[key] = self._make_policy(mine, token, may_write)
        return policy

    def _make_policy(self, groups: tuple[str, ...], token: TokenClaims | None, may_write: bool) -> Policy:
        tenant = self.tenant
        rules = [*tenant.rules]
        for group in groups:
            rules += tenant.group_rules[group]
        scope = None
        if token is not None or not may_write:  # the keys kept there give more than this session has
            rules += self._kept_private
        if token is not None:
            rights = 0
            for right in token.rights:
                rights |= _GRANTS[right]
            scope = Scope(token.paths, rights, f"the token {token.label or token.id}")
        if not rules and scope is None:
            return Policy.OPEN
        return Policy(RuleSet(rules), scope, hide=tenant.hide)

    def _private_rules(self) -> list[Rule]:
        root = os.path.realpath(self.tenant.root)
        found = []
        for path in sorted(set().union(*map(way_to, self._private))):
            inside = os.path.relpath(path, root)
            if inside != b".." and not inside.startswith(b"../"):
                pattern = "/" + _literal(os.fsdecode(inside)) if inside != b"." else "/**"
                found.append(Rule(False, ALL, pattern, "the server's own files"))
        return found

    def limiter_for(self, token: TokenClaims | None) -> Limiter:
        """What bounds all sessions of *token* together, within the tenant's own limits."""
        limiter = self.limiter
        for id, limits in () if token is None else token.chain():
            known = self._tokens.get(id)
            if known is None:
                known = self._tokens[id] = Limiter(Limits(**cast(Any, limits)), parent=limiter)
            limiter = known
        return limiter

    def check_room(self, token: TokenClaims | None) -> None:
        """Raise :class:`RefusedError` (``busy``) if the tenant, or *token*, has all the sessions that it may have."""
        allowed = self.tenant.limits.sessions
        if allowed is not None and len(self.sessions) + self.admitting >= allowed:
            raise RefusedError("busy", f"the workspace has all of its {allowed} sessions; try again later")
        for id, limits in () if token is None else token.chain():
            most = limits.get("sessions")
            if most is not None:
                its = sum(1 for s in self.sessions.values() if s.token is not None and id in s.token.family)
                if its >= most:
                    raise RefusedError("busy", f"the token has all of its {most:.0f} sessions; unmount one")

    def left(self, session: Session) -> None:
        """*session* has ended."""
        self.sessions.pop(session.id, None)
        token = session.token
        if token is not None:
            still = {id for s in self.sessions.values() if s.token is not None for id in s.token.family}
            for id in set(token.family) - still:
                self._tokens.pop(id, None)

    def redefine(self, tenant: Tenant) -> None:
        """The definition has changed, the root has not. Sessions are told to forget what they know."""
        quota_changed = tenant.quota != self.tenant.quota
        self.tenant = tenant
        self._policies.clear()
        self.limiter.update(tenant.limits)
        self.audit.reconfigure(tenant.audit)
        if quota_changed and self.sandbox is not None:
            if self.quota is not None and tenant.quota is not None:
                self.quota.limit = tenant.quota
            else:  # handles that are open already count from the next time they are opened
                self._count_anew()
        for session in self.sessions.values():
            session.limiter.update(tenant.session_limits)
            if session.context is not None:
                session.context.policy = self.policy(session.groups, session.token, session.may_write)
                session.context.raw_owner = tenant.raw_owner and os.geteuid() == 0
            session.pending.everything("the rules of the workspace have changed")

    # --- telling --------------------------------------------------------------------------------------------

    def denied(self, session: Session, rule: str, path: bytes) -> None:
        """*rule* has denied *session* something at *path*. Told in bursts."""
        self.denials += 1
        count = self._denied[session][0] if session in self._denied else 0
        if not count:
            asyncio.get_running_loop().call_later(BURST, self._tell_denials, session)
        self._denied[session] = (count + 1, rule, path)

    def _tell_denials(self, session: Session) -> None:
        count, rule, path = self._denied.pop(session)
        _LOG.warning("session %s: denied %d times, last by %s", session.id[:8], count, rule)
        self._emit({**session.who(), "event": "denials", "count": count, "rule": rule, "path": path})

    def describe(self) -> dict[str, Any]:
        """For the status page."""
        return {
            "sessions": len(self.sessions),
            "denials": self.denials,
            "read_only": self.tenant.read_only,
            "limits": self.limiter.describe(),
            "audit": self.audit.state(),
            "quota": None if self.quota is None else self.quota.describe(),
            "operations": self.profiler.snapshot(),
            "slow": self.profiler.slowest(),
            "slow_count": self.profiler.slow_count,
        }
