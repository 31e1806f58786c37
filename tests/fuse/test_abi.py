"""Sizes, as ``sizeof`` of the C structs gives them on every architecture that Linux runs on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jupyter_wsfuse.fuse import abi

SIZES = {
    "IN_HEADER": 40, "OUT_HEADER": 16, "FORGET_IN": 8, "BATCH_FORGET_IN": 8, "FORGET_ONE": 16, "GETATTR_IN": 16,
    "SETATTR_IN": 88, "MKNOD_IN": 16, "MKDIR_IN": 8, "RENAME_IN": 8, "RENAME2_IN": 16, "LINK_IN": 8, "OPEN_IN": 8,
    "CREATE_IN": 16, "READ_IN": 40, "WRITE_IN": 40, "RELEASE_IN": 24, "FLUSH_IN": 24, "FSYNC_IN": 16,
    "SETXATTR_IN": 8, "GETXATTR_IN": 8, "LK_IN": 48, "ACCESS_IN": 8, "INIT_IN": 16, "INIT_IN_EXT": 48,
    "INTERRUPT_IN": 8, "IOCTL_IN": 32, "FALLOCATE_IN": 32, "LSEEK_IN": 24, "COPY_FILE_RANGE_IN": 56, "SYNCFS_IN": 8,
    "STATX_IN": 24, "ATTR_OUT": 104, "ENTRY_OUT": 128, "OPEN_OUT": 16, "WRITE_OUT": 8, "STATFS_OUT": 80,
    "GETXATTR_OUT": 8, "LK_OUT": 24, "LSEEK_OUT": 8, "COPY_FILE_RANGE_OUT": 8, "DIRENT": 24, "INIT_OUT": 64,
    "STATX_OUT": 288, "NOTIFY_INVAL_INODE_OUT": 24, "NOTIFY_INVAL_ENTRY_OUT": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_size(name: str) -> None:
    assert getattr(abi, name).size == SIZES[name]


def test_every_layout_is_covered() -> None:
    assert {name for name, value in vars(abi).items() if isinstance(value, abi.Struct)} == set(SIZES)


#: Ours -> the header's, where the header of the machine has them.
CONSTANTS = {
    "HAS_EXPIRE_ONLY": "FUSE_HAS_EXPIRE_ONLY", "INIT_EXT": "FUSE_INIT_EXT", "ABORT_ERROR": "FUSE_ABORT_ERROR",
    "MAX_PAGES_FLAG": "FUSE_MAX_PAGES", "CACHE_SYMLINKS": "FUSE_CACHE_SYMLINKS", "ASYNC_DIO": "FUSE_ASYNC_DIO",
    "HANDLE_KILLPRIV_V2": "FUSE_HANDLE_KILLPRIV_V2", "PARALLEL_DIROPS": "FUSE_PARALLEL_DIROPS",
    "DO_READDIRPLUS": "FUSE_DO_READDIRPLUS", "READDIRPLUS_AUTO": "FUSE_READDIRPLUS_AUTO",
    "AUTO_INVAL_DATA": "FUSE_AUTO_INVAL_DATA", "FLOCK_LOCKS": "FUSE_FLOCK_LOCKS", "POSIX_LOCKS": "FUSE_POSIX_LOCKS",
    "FATTR_KILL_SUIDGID": "FATTR_KILL_SUIDGID", "FATTR_LOCKOWNER": "FATTR_LOCKOWNER", "FATTR_CTIME": "FATTR_CTIME",
    "FATTR_MTIME_NOW": "FATTR_MTIME_NOW", "FOPEN_CACHE_DIR": "FOPEN_CACHE_DIR", "LK_FLOCK": "FUSE_LK_FLOCK",
    "FOPEN_PARALLEL_DIRECT_WRITES": "FOPEN_PARALLEL_DIRECT_WRITES", "WRITE_KILL_SUIDGID": "FUSE_WRITE_KILL_SUIDGID",
    "RELEASE_FLOCK_UNLOCK": "FUSE_RELEASE_FLOCK_UNLOCK", "OPEN_KILL_SUIDGID": "FUSE_OPEN_KILL_SUIDGID",
}  # fmt: skip


def test_constants_are_those_of_the_header(tmp_path: Path) -> None:
    compiler, header = shutil.which("cc"), Path("/usr/include/linux/fuse.h")
    if compiler is None or not header.exists():
        pytest.skip("needs a C compiler and <linux/fuse.h>")
    pairs = list(CONSTANTS.items())
    pairs += [(f"Opcode.{one.name}", f"FUSE_{one.name}") for one in abi.Opcode if one < 52]
    source = tmp_path / "constants.c"
    source.write_text(
        "#include <stdio.h>\n#include <linux/fuse.h>\nint main(void) {\n"
        + "".join(f'printf("%llu\\n", (unsigned long long) {theirs});\n' for _, theirs in pairs)
        + "return 0; }\n"
    )
    subprocess.run([compiler, "-o", tmp_path / "constants", source], check=True)
    said = subprocess.run([tmp_path / "constants"], check=True, capture_output=True, text=True).stdout.split()
    ours = [abi.Opcode[name[7:]] if name.startswith("Opcode.") else getattr(abi, name) for name, _ in pairs]
    assert [int(value) for value in said] == ours
