"""The nodes that the kernel knows: who they are, what they are called, how often they were looked up.

A node is a file *identity* (device, inode, birth time), so hard links share one node, and a file that was
replaced under its name is another node. Numbers are never used twice; the generation is always 0.

What keeps a node is a lookup count, an open handle, or a child. A name keeps nothing: it is what we last heard,
and another client may have made it untrue. The server checks the identity at every use of a path, so an
untrue name costs an ``ESTALE``, never a wrong file.

A directory has one name at most. A file may have many, and none while it is open but unlinked; it is then
reached by an open handle or by a *pin*, a handle that the server kept when the last name went.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from stat import S_IFDIR, S_IFMT
from typing import TYPE_CHECKING, Any, Final

from ..errors import os_error
from ..protocol.messages import Attr, Identity
from .api import ROOT, Recorder

if TYPE_CHECKING:
    from .handles import Held, OpenFile

#: Names of the root that the kernel may believe not to exist.
_MISSING: Final = 4096

Version = tuple[int, int, int]  # size, mtime, ctime: changes whenever the data does


class Node:
    """One file. ``type`` is the ``S_IFMT`` part of its mode.

    ``told``: the version of it that the kernel was last told, None when the kernel knows better (it wrote).
    ``pages``: the version that the pages in the kernel's cache belong to, None if that is uncertain.
    """

    __slots__ = (
        "id", "identity", "type", "names", "children", "lookups", "handles", "pin", "gone", "told", "pages", "locks",
    )  # fmt: skip

    def __init__(self, id: int, identity: Identity, type: int) -> None:
        self.id = id
        self.identity = identity
        self.type = type
        self.names: dict[tuple[Node, bytes], None] = {}
        self.children: dict[bytes, Node] = {}
        self.lookups = 0
        self.handles: dict[int, OpenFile] = {}
        self.pin = 0
        self.gone = False
        self.told: Version | None = None
        self.pages: Version | None = None
        self.locks: dict[tuple[int, bool], Held] = {}

    def __repr__(self) -> str:
        return f"<Node {self.id} names={[name for _, name in self.names]} lookups={self.lookups}>"

    def reach(self) -> int:
        """A handle by which the server finds the file whatever it is called; 0 if there is none."""
        for handle, file in self.handles.items():
            if file.failure is None and not file.local:
                return handle
        return self.pin


class Tree:
    """All nodes. Every change is told to *recorder*; replaying what it was told makes the same tree.

    ``on_drop`` is called with a node that is no longer known to anybody.
    """

    def __init__(self, prefix: bytes = b"", recorder: Recorder | None = None) -> None:
        self.prefix = prefix
        self.recorder = recorder
        self.on_drop: Callable[[Node], None] | None = None
        self.root = Node(ROOT, Identity(0, 0, 0), S_IFDIR)
        self.nodes: dict[int, Node] = {ROOT: self.root}
        self._by_identity: dict[Identity, Node] = {}
        self._missing: dict[bytes, None] = {}
        self._next = ROOT + 1

    def __len__(self) -> int:
        return len(self.nodes)

    def record(self, *fields: Any) -> None:
        if self.recorder is not None:
            self.recorder.record(*fields)

    # --- finding ---------------------------------------------------------------------------------------

    def get(self, id: int) -> Node:
        """The node of that number; ``ESTALE`` if there is none."""
        node = self.nodes.get(id)
        if node is None:
            raise os_error(errno.ESTALE, f"node {id} is not known")
        return node

    def find(self, identity: Identity) -> Node | None:
        """The node of the file *identity*, if the kernel knows it."""
        return self._by_identity.get(identity)

    def path_of(self, node: Node) -> bytes | None:
        """A path of *node* from the workspace root, by any name that leads there; None if no name does."""
        if node is self.root:
            return self.prefix
        for parent, name in node.names:
            parts = [name]
            while parent is not self.root:
                if not parent.names:
                    break
                parent, name = next(iter(parent.names))
                parts.append(name)
            else:
                if self.prefix:
                    parts.append(self.prefix)
                parts.reverse()
                return b"/".join(parts)
        return None

    def chain(self, node: Node) -> list[tuple[Node, bytes, Node]]:
        """The (parent, name, child) steps of :meth:`path_of`, from the root down; empty if no path leads there."""
        for parent, name in node.names:
            steps = [(parent, name, node)]
            while parent.names:
                child = parent
                parent, name = next(iter(child.names))
                steps.append((parent, name, child))
            if parent is self.root:
                steps.reverse()
                return steps
        return []

    def depths(self, node: Node) -> Iterator[int]:
        """For every name of *node*: how many directories lie between the root and it."""
        for parent, _ in node.names:
            depth = 0
            while parent.names:
                depth += 1
                parent = next(iter(parent.names))[0]
            yield depth

    # --- identity --------------------------------------------------------------------------------------

    def intern(self, attr: Attr) -> Node:
        """The node of the file that *attr* describes, made if it is new."""
        identity = attr.identity
        node = self._by_identity.get(identity)
        # Without birth times a number may be used again: at least a change of type gives that away.
        if node is not None and node.type == S_IFMT(attr.mode):
            return node
        return self._make(self._next, identity, S_IFMT(attr.mode))

    def _make(self, id: int, identity: Identity, type: int) -> Node:
        node = Node(id, identity, type)
        self.nodes[id] = node
        self._by_identity[identity] = node
        self._next = max(self._next, id + 1)
        self.record("node", id, identity.dev, identity.ino, identity.btime, type)
        return node

    def root_is(self, identity: Identity) -> None:
        """The root is whatever stands at its path; now this directory does."""
        self._unindex(self.root)
        self.root.identity = identity
        self._by_identity[identity] = self.root
        self.record("node", ROOT, identity.dev, identity.ino, identity.btime, S_IFDIR)

    def bury(self, node: Node) -> None:
        """The last name of *node* is gone for good; its inode number may soon belong to another file."""
        for parent, name in list(node.names):
            self.unlink(parent, name)
        if not node.gone:
            node.gone = True
            self._unindex(node)
            self.record("gone", node.id)

    def _unindex(self, node: Node) -> None:
        if self._by_identity.get(node.identity) is node:
            del self._by_identity[node.identity]

    # --- names -----------------------------------------------------------------------------------------

    def link(self, parent: Node, name: bytes, node: Node) -> None:
        """*name* in *parent* is *node*; whatever was known under that name is not there any more."""
        if parent.children.get(name) is node or node is parent or node is self.root:
            return
        self._detach(parent, name)
        if node.type == S_IFDIR:
            # Others moved directories around: if we still believe that `parent` lies below `node`, the step
            # from `node` down to it is the untrue one.
            below = parent
            while node.children and below.names:
                above, step = next(iter(below.names))
                if above is node:
                    self._detach(above, step)
                    break
                below = above
            for other, old in list(node.names):
                self.unlink(other, old)
        parent.children[name] = node
        node.names[parent, name] = None
        self.record("name", parent.id, name, node.id)

    def unlink(self, parent: Node, name: bytes) -> Node | None:
        """*name* in *parent* is gone. Returns the node that it led to."""
        node = self._detach(parent, name)
        if node is not None:
            self.record("unname", parent.id, name)
            self.settle(parent)
        return node

    def _detach(self, parent: Node, name: bytes) -> Node | None:
        node = parent.children.pop(name, None)
        if node is not None:
            del node.names[parent, name]
        return node

    # Invalidating the name of a directory makes the kernel forget what is not in it, too. The root has no name.

    def missing(self, name: bytes) -> bool:
        """The kernel is to be told that *name* is not in the root. False if it had better not be."""
        if name not in self._missing:
            if len(self._missing) >= _MISSING:
                return False
            self._missing[name] = None
            self.record("missing", ROOT, name)
        return True

    def take_missing(self) -> list[bytes]:
        """Names that the kernel was told are not in the root; from now on it is told that no more."""
        names = list(self._missing)
        self._missing.clear()
        return names

    # --- life ------------------------------------------------------------------------------------------

    def look(self, node: Node, count: int = 1) -> None:
        """The kernel is told of *node* once more."""
        node.lookups += count
        self.record("look", node.id, count)

    def forget(self, id: int, count: int) -> None:
        """The kernel takes *count* lookups back. More than there were is no error: a restart may forget some."""
        node = self.nodes.get(id)
        if node is not None and node is not self.root:
            node.lookups = max(0, node.lookups - count)
            self.record("forget", id, count)
            self.settle(node)

    def settle(self, node: Node) -> None:
        """Drop *node*, and then its ancestors, if nothing keeps them."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if (
                node.lookups
                or node.handles
                or node.children
                or node is self.root
                or node.id not in self.nodes
            ):
                continue
            del self.nodes[node.id]
            self._unindex(node)
            for parent, name in node.names:
                del parent.children[name]
                waiting.append(parent)
            node.names.clear()
            if self.on_drop is not None:
                self.on_drop(node)

    # --- restart ---------------------------------------------------------------------------------------

    def apply(self, kind: str, fields: tuple[Any, ...]) -> bool:
        """Do what a record says; False if it is not a record of this module. Unknown nodes are passed over."""
        if kind == "node":
            id, dev, ino, btime, type = fields
            if id == ROOT:
                self.root_is(Identity(dev, ino, btime))
            elif id not in self.nodes:
                self._make(id, Identity(dev, ino, btime), type)
            return True
        if kind == "next":
            self._next = max(self._next, fields[0])
            return True
        if kind == "forget":
            self.forget(*fields)
            return True
        node = self.nodes.get(fields[0]) if fields else None
        if kind == "name":
            child = self.nodes.get(fields[2])
            if node is not None and child is not None:
                self.link(node, bytes(fields[1]), child)
        elif kind == "unname":
            if node is not None:
                self.unlink(node, bytes(fields[1]))
        elif kind == "look":
            if node is not None:
                self.look(node, fields[1])
        elif kind == "missing":
            self._missing[bytes(fields[1])] = None
        elif kind == "gone":
            if node is not None:
                self.bury(node)
        else:
            return False
        return True

    def snapshot(self) -> Iterator[tuple[Any, ...]]:
        """Records that make this tree."""
        for node in self.nodes.values():
            yield ("node", node.id, node.identity.dev, node.identity.ino, node.identity.btime, node.type)
            if node.gone:
                yield ("gone", node.id)
            if node.lookups:
                yield ("look", node.id, node.lookups)
        for node in self.nodes.values():
            for name, child in node.children.items():
                yield ("name", node.id, name, child.id)
        for name in self._missing:
            yield ("missing", ROOT, name)
        yield ("next", self._next)
