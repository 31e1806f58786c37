"""Layouts and constants of ``<linux/fuse.h>`` (protocol 7.31 to 7.45), and nothing else.

Every message from the kernel is a :data:`IN_HEADER`, then the operation's own struct, then NUL-terminated names or
data, then extensions that were negotiated (none are, by us). Every reply is an :data:`OUT_HEADER` and the operation's
struct or data. Fields are in the host's byte order; all structs are padded to 64 bits, so there are no holes that
depend on the architecture. Times are signed seconds and nanoseconds, although the header declares them unsigned.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

MAJOR: Final = 7
#: What this code knows; the smaller of both sides' numbers is spoken.
MINOR: Final = 45
#: 7.31 is Linux 5.2. Older kernels lay several structs out otherwise.
OLDEST_MINOR: Final = 31

ROOT_NODE: Final = 1

#: Set in the id of a request that NOTIFY_RESEND brought again; it belongs to the id in the reply.
UNIQUE_RESEND: Final = 1 << 63
#: Steps between ids of requests; odd ids are of interrupts.
UNIQUE_STEP: Final = 2
#: The kernel takes a reply's error only from this range: 0 > error > -512.
MAX_ERRNO: Final = 511

MAX_PAGES: Final = 256
#: A request's data is limited by MAX_PAGES pages of 4 KiB.
MAX_WRITE: Final = 1 << 20
#: The kernel refuses to read into a buffer that could not hold the largest WRITE.
READ_BUFFER: Final = MAX_WRITE + 4096


class Opcode(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """What we tell the kernel unasked; stands in the reply header's error field, with id 0."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7


# --- flags of INIT: the low 32 bits in ``flags``, the others in ``flags2`` -----------------------------------------

ASYNC_READ: Final = 1 << 0
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
EXPORT_SUPPORT: Final = 1 << 4
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
FLOCK_LOCKS: Final = 1 << 10
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
WRITEBACK_CACHE: Final = 1 << 16
PARALLEL_DIROPS: Final = 1 << 18
ABORT_ERROR: Final = 1 << 21
MAX_PAGES_FLAG: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
HANDLE_KILLPRIV_V2: Final = 1 << 28
SETXATTR_EXT: Final = 1 << 29
INIT_EXT: Final = 1 << 30
HAS_EXPIRE_ONLY: Final = 1 << 35
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
HAS_RESEND: Final = 1 << 39

# --- flags of single operations ------------------------------------------------------------------------------------

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

GETATTR_FH: Final = 1 << 0
LK_FLOCK: Final = 1 << 0
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0
RELEASE_FLOCK_UNLOCK: Final = 1 << 1

F_RDLCK: Final = 0
F_WRLCK: Final = 1
F_UNLCK: Final = 2

#: STATX_BASIC_STATS | STATX_BTIME of <linux/stat.h>
STATX_MASK: Final = 0x7FF | 0x800

# --- headers -------------------------------------------------------------------------------------------------------

#: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
IN_HEADER: Final = Struct("=IIQQIIIHH")
#: len, error, unique
OUT_HEADER: Final = Struct("=IiQ")

# --- requests ------------------------------------------------------------------------------------------------------

#: nlookup
FORGET_IN: Final = Struct("=Q")
#: count, dummy
BATCH_FORGET_IN: Final = Struct("=II")
#: nodeid, nlookup
FORGET_ONE: Final = Struct("=QQ")
#: getattr_flags, dummy, fh
GETATTR_IN: Final = Struct("=IIQ")
#: valid, padding, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, unused, uid, gid,
#: unused
SETATTR_IN: Final = Struct("=IIQQQqqqIIIIIIII")
#: mode, rdev, umask, padding
MKNOD_IN: Final = Struct("=IIII")
#: mode, umask
MKDIR_IN: Final = Struct("=II")
#: newdir
RENAME_IN: Final = Struct("=Q")
#: newdir, flags, padding
RENAME2_IN: Final = Struct("=QII")
#: oldnodeid
LINK_IN: Final = Struct("=Q")
#: flags, open_flags
OPEN_IN: Final = Struct("=II")
#: flags, mode, umask, open_flags
CREATE_IN: Final = Struct("=IIII")
#: fh, offset, size, read_flags, lock_owner, flags, padding
READ_IN: Final = Struct("=QQIIQII")
#: fh, offset, size, write_flags, lock_owner, flags, padding
WRITE_IN: Final = Struct("=QQIIQII")
#: fh, flags, release_flags, lock_owner
RELEASE_IN: Final = Struct("=QIIQ")
#: fh, unused, padding, lock_owner
FLUSH_IN: Final = Struct("=QIIQ")
#: fh, fsync_flags, padding
FSYNC_IN: Final = Struct("=QII")
#: size, flags (SETXATTR_EXT, which would add two fields, is not negotiated)
SETXATTR_IN: Final = Struct("=II")
#: size, padding
GETXATTR_IN: Final = Struct("=II")
#: fh, owner, start, end, type, pid, lk_flags, padding
LK_IN: Final = Struct("=QQQQIIII")
#: mask, padding
ACCESS_IN: Final = Struct("=II")
#: major, minor, max_readahead, flags
INIT_IN: Final = Struct("=IIII")
#: flags2, unused[11]; follows INIT_IN if INIT_EXT is set
INIT_IN_EXT: Final = Struct("=I44x")
#: unique
INTERRUPT_IN: Final = Struct("=Q")
#: fh, flags, cmd, arg, in_size, out_size
IOCTL_IN: Final = Struct("=QIIQII")
#: fh, offset, length, mode, padding
FALLOCATE_IN: Final = Struct("=QQQII")
#: fh, offset, whence, padding
LSEEK_IN: Final = Struct("=QQII")
#: fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")
#: padding
SYNCFS_IN: Final = Struct("=Q")
#: getattr_flags, reserved, fh, sx_flags, sx_mask
STATX_IN: Final = Struct("=IIQII")

# --- replies -------------------------------------------------------------------------------------------------------

#: ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
_ATTR: Final = "QQQqqqIIIIIIIIII"
#: attr_valid, attr_valid_nsec, dummy, attr
ATTR_OUT: Final = Struct("=QII" + _ATTR)
#: nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attr
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTR)
#: fh, open_flags, padding
OPEN_OUT: Final = Struct("=QII")
#: size, padding
WRITE_OUT: Final = Struct("=II")
#: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare[6]
STATFS_OUT: Final = Struct("=QQQQQIIII24x")
#: size, padding
GETXATTR_OUT: Final = Struct("=II")
#: start, end, type, pid
LK_OUT: Final = Struct("=QQII")
#: offset
LSEEK_OUT: Final = Struct("=Q")
#: bytes_copied, of COPY_FILE_RANGE_64
COPY_FILE_RANGE_OUT: Final = Struct("=Q")
#: ino, off, namelen, type; then the name, padded with NULs to a multiple of 8
DIRENT: Final = Struct("=QQII")
#: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
#: map_alignment, flags2, unused[7]
INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")
#: attr_valid, attr_valid_nsec, flags, spare[2], then struct fuse_statx: mask, blksize, attributes, nlink, uid, gid,
#: mode, spare, ino, size, blocks, attributes_mask, then atime, btime, ctime, mtime (each tv_sec, tv_nsec, reserved),
#: rdev_major, rdev_minor, dev_major, dev_minor, spare[14]
STATX_OUT: Final = Struct("=QII16xIIQIIIHHQQQQ" + 4 * "qIi" + "IIII112x")

# --- notifications -------------------------------------------------------------------------------------------------

#: ino, off, len
NOTIFY_INVAL_INODE_OUT: Final = Struct("=Qqq")
#: parent, namelen, flags; then the name and a NUL
NOTIFY_INVAL_ENTRY_OUT: Final = Struct("=QII")
