"""Every request that is answered by the file system, and the function that executes it.

An operation is ``function(context, request, payload, nowait) -> (reply, payload)``. It works on descriptors
that the sandbox gave out, raises :class:`OSError` with the errno that the same call has on a local file
system, and leaves nothing half done that it can undo. Locks, permissions, limits, and remembering replies
are the dispatcher's.
"""

from __future__ import annotations

from typing import Final

from jupyter_wsfuse.engine import attributes, entries, files, subtree
from jupyter_wsfuse.engine.context import Context, Operation, Payload, Result
from jupyter_wsfuse.engine.syscalls import WouldBlock
from jupyter_wsfuse.protocol import messages as m

__all__ = ["OPERATIONS", "Context", "Operation", "Payload", "Result", "WouldBlock", "execute"]

#: ``inline`` only where a local file system answers from memory, or says that it cannot.
OPERATIONS: Final[dict[type[m.Request], Operation]] = {
    m.Lookup: Operation(entries.lookup, inline=True),
    m.GetAttr: Operation(attributes.get_attr, inline=True),
    m.SetAttr: Operation(attributes.set_attr),
    m.Access: Operation(attributes.access),
    m.ReadLink: Operation(attributes.readlink),
    m.OpenDir: Operation(files.open_dir, inline=True),
    m.ReadDir: Operation(entries.read_dir),
    m.Open: Operation(files.open_file, inline=True),
    m.Create: Operation(files.create),
    m.TmpFile: Operation(files.tmp_file),
    m.Close: Operation(files.close, inline=True),
    m.Read: Operation(files.read, inline=True),
    m.Write: Operation(files.write),
    m.Fsync: Operation(files.fsync),
    m.Fallocate: Operation(files.fallocate),
    m.Seek: Operation(files.seek),
    m.CopyRange: Operation(files.copy_range),
    m.MkDir: Operation(entries.mkdir),
    m.MkNod: Operation(entries.mknod),
    m.SymLink: Operation(entries.symlink),
    m.Link: Operation(entries.link),
    m.Unlink: Operation(entries.unlink),
    m.RmDir: Operation(entries.rmdir),
    m.Rename: Operation(entries.rename),
    m.StatFs: Operation(attributes.stat_fs),
    m.SyncFs: Operation(attributes.sync_fs),
    m.GetXattr: Operation(attributes.get_xattr),
    m.SetXattr: Operation(attributes.set_xattr),
    m.ListXattr: Operation(attributes.list_xattr),
    m.RemoveXattr: Operation(attributes.remove_xattr),
    m.Reopen: Operation(files.take_up),
    m.Fetch: Operation(files.fetch, inline=True),
    m.ListTree: Operation(subtree.list_tree),
}


def execute(context: Context, request: m.Request, payload: Payload = b"", nowait: bool = False) -> Result:
    """Execute one request of :data:`OPERATIONS`.

    With *nowait* (only for ``inline`` ones) it may raise ``WouldBlock``.
    """
    return OPERATIONS[type(request)].function(context, request, payload, nowait)
