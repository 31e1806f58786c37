"""The kernel's side, written from <linux/fuse.h> and not from our own layouts."""

from __future__ import annotations

import socket
import struct

UID, GID, PID = 1000, 100, 4242


def message(
    opcode: int, body: bytes = b"", *, unique: int = 2, node: int = 7, extensions: bytes = b""
) -> bytes:
    """struct fuse_in_header { u32 len, opcode; u64 unique, nodeid; u32 uid, gid, pid; u16 total_extlen, padding }"""
    length = 40 + len(body) + len(extensions)
    head = struct.pack("=IIQQIIIHH", length, opcode, unique, node, UID, GID, PID, len(extensions) // 8, 0)
    return head + body + extensions


def init(
    *, major: int = 7, minor: int = 45, flags: int = 0x5FD73FFFFFB, readahead: int = 131072, unique: int = 2
) -> bytes:
    body = struct.pack("=IIIII44x", major, minor, readahead, flags & 0xFFFFFFFF, flags >> 32)
    return message(26, body, unique=unique, node=0)


class Device:
    """What stands for /dev/fuse: a pair of sockets that keep messages apart. The driver gets ``fd``."""

    def __init__(self) -> None:
        self.kernel, self._driver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self._driver):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.kernel.setblocking(False)
        self.fd = self._driver.fileno()

    def send(self, message: bytes) -> None:
        self.kernel.send(message)

    def received(self) -> tuple[int, int, bytes] | None:
        """(unique, error, body) of the next reply that is there already."""
        try:
            data = self.kernel.recv(2 << 20)
        except BlockingIOError:
            return None
        length, error, unique = struct.unpack_from("=IiQ", data)
        assert length == len(data)
        return unique, error, data[16:]

    def close(self) -> None:
        self.kernel.close()
        self._driver.close()
