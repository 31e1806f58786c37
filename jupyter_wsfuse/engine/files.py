"""Operations on what a file holds: opening, reading, writing, space, and making it durable."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from jupyter_wsfuse.engine import enforcement, syscalls
from jupyter_wsfuse.engine.attributes import kill_privileges
from jupyter_wsfuse.engine.context import (
    MAX_IO,
    Context,
    Payload,
    Result,
    check_fence,
    check_range,
    entry_path,
    owned_by,
)
from jupyter_wsfuse.engine.entries import lease_on_file
from jupyter_wsfuse.engine.permissions import LIST, READ, WRITE
from jupyter_wsfuse.engine.sandbox import Target, check_name, proc_path, reopen
from jupyter_wsfuse.engine.syscalls import WouldBlock
from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol import messages as m

# What of a client's open flags is passed on. O_DIRECT is not: it is for the client's kernel to leave its
# cache out, and would only ask for aligned buffers here. None of these numbers differs between architectures.
_ACCESS: Final = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC
_FALLOCATE_MODES: Final = (
    syscalls.FALLOC_FL_KEEP_SIZE | syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_ZERO_RANGE
)
_COPY_MAX: Final = 128 << 20  # bytes of one CopyRange; less than asked for is a valid answer
_CREATE_ATTEMPTS: Final = 100  # against a name that somebody makes and removes all the time


# --- opening


def open_file(context: Context, request: m.Open, payload: Payload, nowait: bool) -> Result:
    truncate = request.flags & os.O_TRUNC
    if nowait and truncate:
        raise WouldBlock
    context.handles.check_free(request.handle)
    rights = enforcement.rights_to_open(request.flags)
    with enforcement.resolve(context, request.ref, rights, nowait) as target:
        fd = _open_target(target, request.flags & (_ACCESS | os.O_TRUNC), nowait)
        attr = None if truncate else target.attr
        kill = bool(truncate and request.kill_priv)
        path = request.ref.path or target.path
        data = _first_bytes(target, fd, request, nowait)
        reply = _enter(
            context, request.seq, fd, request.flags, path, attr, kill=kill, id=request.handle, judged=target
        )
        return reply, data


def _first_bytes(target: Target, fd: int, request: m.Open, nowait: bool) -> Payload:
    """What ``Open.inline`` asks for. Closes *fd* if it raises."""
    if (
        request.inline <= 0
        or request.flags & os.O_ACCMODE == os.O_WRONLY
        or not stat.S_ISREG(target.attr.mode)
    ):
        return b""
    try:
        return _read_at(fd, min(request.inline, MAX_IO), 0, nowait)
    except BaseException:
        os.close(fd)
        raise


def fetch(context: Context, request: m.Fetch, payload: Payload, nowait: bool) -> Result:
    """Opened, read and closed: nothing of it remains."""
    size, offset = request.size, request.offset
    check_range(offset)
    if not 0 <= size <= MAX_IO:
        raise os_error(errno.EINVAL)
    with enforcement.resolve(context, request.ref, READ, nowait) as target:
        fd = _open_to_fetch(target, request.background, nowait)
        try:
            lease = lease_on_file(context, fd, target.attr)
            attr = context.sandbox.stat(fd, nowait) if lease else target.attr
            return m.FetchReply(request.seq, attr, lease), _read_at(fd, size, offset, nowait)
        finally:
            os.close(fd)


def _open_to_fetch(target: Target, background: bool, nowait: bool) -> int:
    if (
        background
    ):  # nobody has read it yet: that is not to be seen in its access time, where we may see to that
        try:
            return _open_target(target, os.O_RDONLY | os.O_NOATIME, nowait)
        except PermissionError:
            pass
    return _open_target(target, os.O_RDONLY, nowait)


def open_dir(context: Context, request: m.OpenDir, payload: Payload, nowait: bool) -> Result:
    context.handles.check_free(request.handle)
    with enforcement.resolve(context, request.ref, LIST, nowait) as target:
        fd = _open_directory(target)
        path = request.ref.path or target.path
        reply = _enter(
            context, request.seq, fd, os.O_RDONLY, path, target.attr,
            directory=True, id=request.handle, judged=target,
        )  # fmt: skip
        return reply, b""


def create(context: Context, request: m.Create, payload: Payload, nowait: bool) -> Result:
    check_name(request.name)
    flags = request.flags & _ACCESS
    path = entry_path(request.parent, request.name)
    with enforcement.parent(context, request.parent) as parent:
        newcomer = enforcement.Newcomer(context, parent, request.name, request.flags)
        for _ in range(_CREATE_ATTEMPTS):
            if newcomer.allowed:
                try:
                    with owned_by(context, request.uid, request.gid):
                        fd = os.open(
                            request.name,
                            flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                            request.mode & 0o7777,
                            dir_fd=parent.fd,
                        )
                    return _enter(context, request.seq, fd, flags, path, None, judged=newcomer), b""
                except FileExistsError:
                    if request.flags & os.O_EXCL:
                        raise
            # It exists: it is opened as any file is, found first, then looked at, then opened.
            try:
                found = context.sandbox.lookup(parent.fd, request.name)
            except FileNotFoundError:
                newcomer.check(context)
                continue
            with Target(found, context.sandbox.stat(found), None, context.handles) as target:
                newcomer.exists(context, target, request.flags)
                truncate = request.flags & os.O_TRUNC
                fd = _open_target(target, flags | truncate, False)
                kill = bool(truncate and request.kill_priv)
                reply = _enter(context, request.seq, fd, flags, path, None, kill=kill, judged=target)
                return reply, b""
        raise os_error(errno.ESTALE)


def tmp_file(context: Context, request: m.TmpFile, payload: Payload, nowait: bool) -> Result:
    flags = request.flags & (_ACCESS | os.O_EXCL)
    with enforcement.parent(context, request.parent) as parent:
        newcomer = enforcement.Newcomer(context, parent, None, request.flags)
        with owned_by(context, request.uid, request.gid):
            fd = os.open(b".", flags | os.O_TMPFILE | os.O_CLOEXEC, request.mode & 0o7777, dir_fd=parent.fd)
        path = request.parent.path or parent.path
        return _enter(context, request.seq, fd, flags, path, None, judged=newcomer), b""


def take_up(context: Context, request: m.Reopen, payload: Payload, nowait: bool) -> Result:
    """Reopen: the handle gets the number back that it had with an engine that is gone. Does nothing about
    locks."""
    rights = LIST if request.directory else enforcement.rights_to_open(request.flags)
    with enforcement.resolve(context, request.ref, rights) as target:
        identity = target.attr.identity
        if request.handle in context.handles:
            if context.handles.get(request.handle).identity != identity:
                raise os_error(errno.ESTALE)
            return m.OpenReply(request.seq, request.handle, target.attr), b""
        if request.handle <= 0:
            raise os_error(errno.EINVAL)
        if request.directory:
            fd = _open_directory(target)
        else:
            fd = _open_again(target, request.flags & _ACCESS)
        reply = _enter(
            context,
            request.seq,
            fd,
            request.flags,
            request.ref.path,
            target.attr,
            directory=request.directory,
            id=request.handle,
            judged=target,
        )
        return reply, b""


def open_created(context: Context, request: m.Create) -> m.OpenReply:
    """The reply to a Create whose file an engine that is gone had made already."""
    with enforcement.parent(context, request.parent) as parent:
        newcomer = enforcement.Newcomer(context, parent, request.name, request.flags)
        newcomer.check(context)
        fd = context.sandbox.open_entry(parent.fd, request.name)
    with Target(fd, context.sandbox.stat(fd), None, context.handles) as target:
        flags = request.flags & _ACCESS
        path = entry_path(request.parent, request.name)
        again = _open_again(target, flags)
        return _enter(context, request.seq, again, flags, path, target.attr, judged=newcomer)


def read_back(context: Context, fd: int, size: int, offset: int) -> bytes:
    """Up to *size* bytes of an open file, also if it was not opened for reading."""
    with Target(
        os.open(proc_path(fd), os.O_PATH | os.O_CLOEXEC), context.sandbox.stat(fd), None, context.handles
    ) as target:
        again = _open_again(target, os.O_RDONLY)
    try:
        return os.pread(again, size, offset)
    finally:
        os.close(again)


def _open_again(target: Target, flags: int) -> int:
    """Open what the session had open before, although its mode may not allow that any more, as with a file
    that was created read-only for writing. Only for the engine's own files, which it could open as it likes.
    """
    try:
        return _open_target(target, flags, False)
    except PermissionError:
        if target.attr.uid != os.geteuid() or not stat.S_ISREG(target.attr.mode):
            raise
    mode = stat.S_IMODE(target.attr.mode)
    os.chmod(proc_path(target.fd), mode | stat.S_IRUSR | stat.S_IWUSR)
    try:
        return _open_target(target, flags, False)
    finally:
        os.chmod(proc_path(target.fd), mode)


def _open_target(target: Target, flags: int, nowait: bool) -> int:
    mode = target.attr.mode
    if stat.S_ISDIR(mode):
        raise os_error(errno.EISDIR)
    if not nowait:
        return reopen(target.fd, mode, flags)
    try:
        # O_NONBLOCK has one meaning for a regular file: not to wait until somebody gives up a lease on it.
        return reopen(target.fd, mode, flags | os.O_NONBLOCK)
    except BlockingIOError:
        raise WouldBlock from None


def _open_directory(target: Target) -> int:
    if not stat.S_ISDIR(target.attr.mode):
        raise os_error(errno.ENOTDIR)
    return reopen(target.fd, target.attr.mode, os.O_RDONLY | os.O_DIRECTORY)


def _enter(
    context: Context,
    seq: int,
    fd: int,
    flags: int,
    path: bytes,
    attr: m.Attr | None,
    *,
    kill: bool = False,
    directory: bool = False,
    id: int = 0,
    judged: Target | enforcement.Newcomer,
) -> m.OpenReply:
    """Make an open file a handle of the session, *judged* before. *attr* None: ask for it, after clearing
    privileges if *kill*."""
    if attr is None:
        try:
            if kill:
                kill_privileges(fd)
            attr = context.sandbox.stat(fd)
        except BaseException:
            os.close(fd)
            raise
    handle = context.handles.add(
        fd, flags=flags & _ACCESS, identity=attr.identity, directory=directory, path=path, id=id
    )
    handle.place, handle.rights, handle.judged = judged.place, judged.rights, judged.judged
    return m.OpenReply(seq, handle.id, attr)


def close(context: Context, request: m.Close, payload: Payload, nowait: bool) -> Result:
    """Forget the handle. Its locks are the caller's to release, before this."""
    if nowait:
        handle = context.handles.find(request.handle)
        # The last close of a file without a name frees its blocks; one that was written may write some out.
        if handle is not None and (handle.writable or handle.pin or not os.fstat(handle.fd).st_nlink):
            raise WouldBlock
    context.handles.close(request.handle)
    return m.Done(request.seq), b""


# --- data


def read(context: Context, request: m.Read, payload: Payload, nowait: bool) -> Result:
    """All that was asked for, unless the file ends before."""
    size, offset = request.size, request.offset
    check_range(offset)
    if not 0 <= size <= MAX_IO:
        raise os_error(errno.EINVAL)
    handles = context.handles
    handle = handles.acquire(request.handle)
    try:
        if not context.policy.unrestricted:
            enforcement.require(context, handle, READ)
        return m.DataReply(request.seq), _read_at(handle.fd, size, offset, nowait)
    finally:
        handles.release(handle)


def _read_at(fd: int, size: int, offset: int, nowait: bool) -> Payload:
    """*size* bytes, fewer only where the file ends."""
    buffer = bytearray(size)
    got = 0
    while got < size:
        count = _read_some(fd, memoryview(buffer)[got:], offset + got, nowait)
        if not count:
            return memoryview(buffer)[:got]
        got += count
    return buffer


def _read_some(fd: int, buffer: memoryview, offset: int, nowait: bool) -> int:
    if not nowait:
        return os.preadv(fd, [buffer], offset)
    try:
        return os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        raise WouldBlock from None
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a file system that cannot tell what is in memory
            raise WouldBlock from None
        raise


def write(context: Context, request: m.Write, payload: Payload, nowait: bool) -> Result:
    """All of the payload, or what there was room for. A handle opened with ``O_APPEND`` writes at the end, by
    the kernel."""
    check_range(request.offset)
    size = len(payload)
    if size > MAX_IO:
        raise os_error(errno.EINVAL)
    handles = context.handles
    handle = handles.acquire(request.handle)
    try:
        if not context.policy.unrestricted:
            enforcement.require(context, handle, WRITE)
        check_fence(handle)
        done = os.pwrite(handle.fd, payload, request.offset)
        while done < size:
            try:
                done += os.pwrite(handle.fd, memoryview(payload)[done:], request.offset + done)
            except OSError:
                break  # what was written counts; the rest, sent again, meets the error
        if request.kill_priv:
            kill_privileges(handle.fd)
        return m.CountReply(request.seq, done), b""
    finally:
        handles.release(handle)


def fsync(context: Context, request: m.Fsync, payload: Payload, nowait: bool) -> Result:
    with context.handles.use(request.handle) as handle:
        if request.data_only:
            os.fdatasync(handle.fd)
        else:
            os.fsync(handle.fd)
        return m.Done(request.seq), b""


def fallocate(context: Context, request: m.Fallocate, payload: Payload, nowait: bool) -> Result:
    check_range(request.offset, request.length)
    if request.mode & ~_FALLOCATE_MODES:
        raise os_error(errno.EOPNOTSUPP)
    with context.handles.use(request.handle) as handle:
        enforcement.require(context, handle, WRITE)
        check_fence(handle)
        syscalls.fallocate(handle.fd, request.mode, request.offset, request.length)
        return m.Done(request.seq), b""


def seek(context: Context, request: m.Seek, payload: Payload, nowait: bool) -> Result:
    """The next data or hole. Nothing else: the position of a handle means nothing to a client."""
    check_range(request.offset)
    with context.handles.use(request.handle) as handle:
        enforcement.require(context, handle, 0)
        if request.whence not in (os.SEEK_DATA, os.SEEK_HOLE) or handle.directory:
            raise os_error(errno.EINVAL)
        return m.CountReply(request.seq, os.lseek(handle.fd, request.offset, request.whence)), b""


def copy_range(context: Context, request: m.CopyRange, payload: Payload, nowait: bool) -> Result:
    """copy_file_range(2), as far as one request may go; less than asked for is a valid answer."""
    check_range(request.source_offset, request.target_offset, request.length)
    with context.handles.use(request.source) as source, context.handles.use(request.target) as target:
        enforcement.require(context, source, READ)
        enforcement.require(context, target, WRITE)
        check_fence(target)
        # Within one file, a second call would go on with what the first one has appended.
        rest = max(0, os.fstat(source.fd).st_size - request.source_offset)
        length = min(request.length, rest, _COPY_MAX)
        done = 0
        while True:
            try:
                count = os.copy_file_range(
                    source.fd,
                    target.fd,
                    length - done,
                    request.source_offset + done,
                    request.target_offset + done,
                )
            except OSError:
                if done:
                    break
                raise
            done += count
            if not count or done == length:
                break
        return m.CountReply(request.seq, done), b""
