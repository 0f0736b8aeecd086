"""The wire of FUSE: requests from the kernel, and the answers to them.

Source: include/uapi/linux/fuse.h of Linux, protocol 7.31; fusermount3 hands the descriptor over as libfuse's
lib/mount_util.c and util/fusermount.c have it.
"""

import array
import errno
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

_MAX_WRITE = 1 << 20
_BUFFER = _MAX_WRITE + 4096
_PROTOCOL = (7, 31)
_BIG_WRITES = 1 << 5
_MAX_PAGES = 1 << 22
_VALID_S = 1

_IN_HEADER = struct.Struct("<IIQQIIII")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_INIT_IN = struct.Struct("<4I")
_INIT_OUT = struct.Struct("<4I2H2I2H8I")

_VALID = struct.Struct("<Q2I")
_ENTRY = struct.Struct("<4Q2I")
SETATTR = struct.Struct("<2I6Q8I")
MKNOD = struct.Struct("<4I")
MKDIR = struct.Struct("<2I")
HANDLE = struct.Struct("<Q")
OPEN = struct.Struct("<2I")
OPENED = struct.Struct("<Q2I")
CREATE = struct.Struct("<4I")
TRANSFER = struct.Struct("<2Q2IQ2I")
WRITTEN = struct.Struct("<2I")
ALLOCATE = struct.Struct("<3Q2I")
SEEK = struct.Struct("<2Q2I")
SOUGHT = struct.Struct("<Q")
FORGET_MANY = struct.Struct("<2I")
FORGET_ONE = struct.Struct("<2Q")
XATTR = struct.Struct("<2I")
_FILE_SYSTEM = struct.Struct("<5Q4I6I")
_DIRECTORY_ENTRY = struct.Struct("<2Q2I")


class Opcode(IntEnum):
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
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    BATCH_FORGET = 42
    FALLOCATE = 43
    LSEEK = 46


UNANSWERED = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}


class Request(NamedTuple):
    opcode: int
    unique: int
    node: int
    body: memoryview
    """Valid until the next request is taken."""


class Kernel:
    """The kernel's end of a mounted folder."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def requests(self) -> Iterator[Request]:
        """Until the folder is unmounted."""
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while True:
            try:
                length = os.readv(self._descriptor, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in {errno.ENOENT, errno.EAGAIN}:  # the request was interrupted
                    continue
                raise
            _, opcode, unique, node, *_ = _IN_HEADER.unpack_from(buffer)
            request = Request(opcode, unique, node, view[_IN_HEADER.size : length])
            if opcode == Opcode.INIT:
                self.answer(unique, _greeting(request.body))
            else:
                yield request

    def answer(self, unique: int, body: bytes, *, error: int = 0) -> None:
        header = _OUT_HEADER.pack(_OUT_HEADER.size + len(body), -error, unique)
        try:
            os.writev(self._descriptor, [header, body])
        except OSError as problem:
            if problem.errno != errno.ENOENT:  # nobody waits for it any more
                raise


def _greeting(body: memoryview) -> bytes:
    """Locks stay with the kernel, writes go through at once (no write-back cache), pages that were read are kept."""
    _, _, max_readahead, offered = _INIT_IN.unpack_from(body)
    flags = offered & (_BIG_WRITES | _MAX_PAGES)
    background, congested = 64, 48
    pages = _MAX_WRITE // 4096
    return _INIT_OUT.pack(*_PROTOCOL, max_readahead, flags, background, congested, _MAX_WRITE, 1, pages, 0, *[0] * 8)


def attributes(status: os.stat_result) -> bytes:
    """Answers GETATTR and SETATTR."""
    return _VALID.pack(_VALID_S, 0, 0) + _attributes(status)


def entry(node: int, status: os.stat_result) -> bytes:
    """Answers what looks up or makes a name."""
    return _ENTRY.pack(node, 0, _VALID_S, _VALID_S, 0, 0) + _attributes(status)


def _attributes(status: os.stat_result) -> bytes:
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    return _ATTRIBUTES.pack(
        status.st_ino,
        status.st_size,
        status.st_blocks,
        *(time // 10**9 for time in times),
        *(time % 10**9 for time in times),
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_blksize,
        0,
    )


def file_system(status: os.statvfs_result) -> bytes:
    """Answers STATFS."""
    free = (status.f_blocks, status.f_bfree, status.f_bavail, status.f_files, status.f_ffree)
    return _FILE_SYSTEM.pack(*free, status.f_bsize, status.f_namemax, status.f_frsize, 0, *[0] * 6)


def directory(entries: list[tuple[bytes, int, int]], *, first: int, room: int) -> bytes:
    """Answers READDIR with as many (name, inode, mode) from the first as there is room for."""
    packed = b""
    for number, (name, inode, mode) in enumerate(entries[first:], first + 1):
        one = _DIRECTORY_ENTRY.pack(inode, number, len(name), stat.S_IFMT(mode) >> 12) + name
        one += bytes(-len(one) % 8)
        if len(packed) + len(one) > room:
            break
        packed += one
    return packed


def names(body: memoryview) -> list[str]:
    """The names that end a request."""
    return [os.fsdecode(name) for name in bytes(body).split(b"\0")[:-1]]


def mount(folder: Path) -> int:
    """Mount and return the descriptor of the kernel's end. Raises OSError, or CalledProcessError with the reason."""
    options = f"fsname=recorded,subtype=recorded{',allow_other' if os.geteuid() == 0 else ''}"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            ["fusermount3", "-o", options, "--", folder],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=True,
        )
        _, ancillary, *_ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    [(_, _, sent)] = ancillary
    return array.array("i", sent)[0]


def unmount(folder: Path) -> None:
    """Also where programs still use it: for those it stays until they have closed what they opened."""
    for how in (["-u"], ["-u", "-z"]):
        if subprocess.run(["fusermount3", *how, "--", folder], capture_output=True, check=False).returncode == 0:
            return
