"""The recorder: answers the kernel's requests from a backing folder and writes the changes to the log.

It is one thread, so the log's order is the order in which things happened. Files are known by inode, as the kernel
asks for them, so that neither renames nor further names confuse it. fsync is written down, not carried out.
"""

import ctypes
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .fuse import (
    ALLOCATE,
    CREATE,
    FORGET_MANY,
    FORGET_ONE,
    HANDLE,
    MKDIR,
    MKNOD,
    OPEN,
    OPENED,
    SEEK,
    SETATTR,
    SOUGHT,
    TRANSFER,
    UNANSWERED,
    WRITTEN,
    XATTR,
    Kernel,
    Opcode,
    attributes,
    directory,
    entry,
    file_system,
    names,
)
from .operations import (
    BEGUN,
    ROOT,
    Allocate,
    Create,
    Link,
    Log,
    Mark,
    Rename,
    Resize,
    SetMode,
    SyncFile,
    SyncFolder,
    Unlink,
)

MARK = "user.recorded.mark"
"""Setting this extended attribute of anything in the folder puts its value into the log."""

if TYPE_CHECKING:
    from collections.abc import Callable

_KEPT_FROM_BACKING = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_DIRECT
"""The kernel has done these itself by the time it asks."""
_KEEP_CACHE = 1 << 1
_SET_MODE, _SET_USER, _SET_GROUP, _SET_SIZE, _SET_ATIME, _SET_MTIME = (1 << bit for bit in range(6))
_ATIME_NOW, _MTIME_NOW = 1 << 7, 1 << 8
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_COPIED_AT_ONCE = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)


@dataclass(slots=True)
class _Node:
    """What the kernel remembers: an inode, held by a descriptor that only names it."""

    number: int
    descriptor: int
    looked_up: int = 0

    @property
    def path(self) -> Path:
        return Path(f"/proc/self/fd/{self.descriptor}")


class Passthrough:
    """Serves one mounted folder until it is unmounted."""

    def __init__(self, backing: Path, log: Log) -> None:
        self._log = log
        self._last = ROOT
        root = _Node(ROOT, os.open(backing, os.O_PATH | os.O_DIRECTORY))
        self._nodes = {ROOT: root}
        self._numbers = {os.fstat(root.descriptor).st_ino: ROOT}
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        self._answers: dict[int, Callable[[int, memoryview], bytes]] = {
            Opcode.LOOKUP: self._look_up,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._forget_many,
            Opcode.INTERRUPT: lambda _node, _body: b"",
            Opcode.GETATTR: self._get_attributes,
            Opcode.SETATTR: self._set_attributes,
            Opcode.SETXATTR: self._mark,
            Opcode.READLINK: self._read_link,
            Opcode.SYMLINK: self._make_symlink,
            Opcode.MKNOD: self._make_node,
            Opcode.MKDIR: self._make_folder,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._remove_folder,
            Opcode.RENAME: self._rename,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: lambda node, _body: file_system(os.statvfs(self._nodes[node].path)),
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._sync_file,
            Opcode.OPENDIR: self._open_folder,
            Opcode.READDIR: self._read_folder,
            Opcode.RELEASEDIR: self._release_folder,
            Opcode.FSYNCDIR: self._sync_folder,
            Opcode.FALLOCATE: self._allocate,
            Opcode.LSEEK: self._seek,
        }
        self._record_what_is_there(backing, ROOT)
        log.add(Mark(BEGUN))

    def serve(self, kernel: Kernel) -> None:
        for request in kernel.requests():
            answer = self._answers.get(request.opcode)
            if answer is None:
                kernel.answer(request.unique, b"", error=errno.ENOSYS)  # the kernel does without from now on
                continue
            try:
                body = answer(request.node, request.body)
            except OSError as error:
                kernel.answer(request.unique, b"", error=error.errno or errno.EIO)
            else:
                if request.opcode not in UNANSWERED:
                    kernel.answer(request.unique, body)

    def _record_what_is_there(self, folder: Path, number: int) -> None:
        for path in sorted(folder.iterdir()):
            status = path.lstat()
            known = self._numbers.get(status.st_ino)
            if known is not None:
                self._log.add(Link(number, path.name, known))
                continue
            child = self._new_number(status)
            target = str(path.readlink()) if path.is_symlink() else ""
            self._log.add(Create(number, path.name, child, status.st_mode, target))
            if stat.S_ISDIR(status.st_mode):
                self._record_what_is_there(path, child)
            elif stat.S_ISREG(status.st_mode):
                self._record_content(path, child, status.st_size)
        self._log.add(SyncFolder(number))

    def _record_content(self, path: Path, number: int, size: int) -> None:
        with path.open("rb") as file:
            while data := file.read(_COPIED_AT_ONCE):
                if any(data):
                    self._log.add_write(number, file.tell() - len(data), data)
        self._log.add(Resize(number, size))
        self._log.add(SyncFile(number))

    def _new_number(self, status: os.stat_result) -> int:
        self._last += 1
        self._numbers[status.st_ino] = self._last  # of an earlier file the inode may have been, which is gone
        return self._last

    def _node(self, parent: int, name: str) -> tuple[_Node, os.stat_result]:
        """Found by its name, once more."""
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._nodes[parent].descriptor)
        status = os.fstat(descriptor)
        number = self._numbers.get(status.st_ino)
        if number is None:
            raise RuntimeError(f"{name} came into the backing folder behind the recorder's back")
        node = self._nodes.get(number)
        if node is None:
            node = self._nodes[number] = _Node(number, descriptor)
        else:
            os.close(descriptor)
        node.looked_up += 1
        return node, status

    def _look_up(self, parent: int, body: memoryview) -> bytes:
        [name] = names(body)
        node, status = self._node(parent, name)
        return entry(node.number, status)

    def _forget(self, number: int, body: memoryview) -> bytes:
        self._forget_one(number, *HANDLE.unpack_from(body))
        return b""

    def _forget_many(self, _number: int, body: memoryview) -> bytes:
        [count, _] = FORGET_MANY.unpack_from(body)
        for number in range(count):
            self._forget_one(*FORGET_ONE.unpack_from(body, FORGET_MANY.size + number * FORGET_ONE.size))
        return b""

    def _forget_one(self, number: int, times: int) -> None:
        node = self._nodes[number]
        node.looked_up -= times
        if node.looked_up <= 0 and number != ROOT:
            os.close(self._nodes.pop(number).descriptor)

    def _get_attributes(self, number: int, _body: memoryview) -> bytes:
        return attributes(os.fstat(self._nodes[number].descriptor))

    def _set_attributes(self, number: int, body: memoryview) -> bytes:
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, user, group, _ = SETATTR.unpack_from(
            body
        )
        node = self._nodes[number]
        if valid & (_SET_USER | _SET_GROUP):
            os.chown(node.path, user if valid & _SET_USER else -1, group if valid & _SET_GROUP else -1)
        if valid & _SET_MODE:
            node.path.chmod(stat.S_IMODE(mode))
            self._log.add(SetMode(number, stat.S_IMODE(mode)))
        if valid & _SET_SIZE:
            os.truncate(node.path, size)
            self._log.add(Resize(number, size))
        if valid & (_SET_ATIME | _SET_MTIME):
            status = os.fstat(node.descriptor)
            times = [status.st_atime_ns, status.st_mtime_ns]
            if valid & _ATIME_NOW or valid & _MTIME_NOW:
                os.utime(node.path)
            else:
                if valid & _SET_ATIME:
                    times[0] = atime * 10**9 + atime_ns
                if valid & _SET_MTIME:
                    times[1] = mtime * 10**9 + mtime_ns
                os.utime(node.path, ns=(times[0], times[1]))
        return attributes(os.fstat(node.descriptor))

    def _mark(self, _number: int, body: memoryview) -> bytes:
        name, value = bytes(body[XATTR.size :]).split(b"\0", 1)
        if name != MARK.encode():
            raise OSError(errno.ENOTSUP, "no extended attributes here")
        self._log.add(Mark(value.decode()))
        return b""

    def _read_link(self, number: int, _body: memoryview) -> bytes:
        return os.fsencode(os.readlink("", dir_fd=self._nodes[number].descriptor))

    def _made(self, parent: int, name: str, target: str = "") -> bytes:
        """Of a name that is new, to the log and to the kernel."""
        status = os.stat(name, dir_fd=self._nodes[parent].descriptor, follow_symlinks=False)
        number = self._new_number(status)
        self._log.add(Create(parent, name, number, status.st_mode, target))
        self._node(parent, name)
        return entry(number, status)

    def _make_symlink(self, parent: int, body: memoryview) -> bytes:
        name, target = names(body)
        os.symlink(target, name, dir_fd=self._nodes[parent].descriptor)
        return self._made(parent, name, target)

    def _make_node(self, parent: int, body: memoryview) -> bytes:
        mode, device, _, _ = MKNOD.unpack_from(body)
        [name] = names(body[MKNOD.size :])
        os.mknod(name, mode, device, dir_fd=self._nodes[parent].descriptor)
        return self._made(parent, name)

    def _make_folder(self, parent: int, body: memoryview) -> bytes:
        mode, _ = MKDIR.unpack_from(body)
        [name] = names(body[MKDIR.size :])
        os.mkdir(name, mode, dir_fd=self._nodes[parent].descriptor)
        return self._made(parent, name)

    def _unlink(self, parent: int, body: memoryview) -> bytes:
        [name] = names(body)
        os.unlink(name, dir_fd=self._nodes[parent].descriptor)
        self._log.add(Unlink(parent, name))
        return b""

    def _remove_folder(self, parent: int, body: memoryview) -> bytes:
        [name] = names(body)
        os.rmdir(name, dir_fd=self._nodes[parent].descriptor)
        self._log.add(Unlink(parent, name))
        return b""

    def _rename(self, parent: int, body: memoryview) -> bytes:
        [new_parent] = HANDLE.unpack_from(body)
        name, new_name = names(body[HANDLE.size :])
        old, new = self._nodes[parent], self._nodes[new_parent]
        os.rename(name, new_name, src_dir_fd=old.descriptor, dst_dir_fd=new.descriptor)
        self._log.add(Rename(parent, name, new_parent, new_name))
        return b""

    def _link(self, parent: int, body: memoryview) -> bytes:
        [number] = HANDLE.unpack_from(body)
        [name] = names(body[HANDLE.size :])
        os.link(self._nodes[number].path, name, dst_dir_fd=self._nodes[parent].descriptor, follow_symlinks=True)
        self._log.add(Link(parent, name, number))
        return self._look_up(parent, body[HANDLE.size :])

    def _open(self, number: int, body: memoryview) -> bytes:
        [flags, _] = OPEN.unpack_from(body)
        handle = os.open(self._nodes[number].path, flags & ~_KEPT_FROM_BACKING)
        return OPENED.pack(handle, _KEEP_CACHE, 0)

    def _create(self, parent: int, body: memoryview) -> bytes:
        flags, mode, *_ = CREATE.unpack_from(body)
        [name] = names(body[CREATE.size :])
        flags = flags & ~_KEPT_FROM_BACKING | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = os.open(name, flags, mode, dir_fd=self._nodes[parent].descriptor)
        return self._made(parent, name) + OPENED.pack(handle, _KEEP_CACHE, 0)

    def _read(self, _number: int, body: memoryview) -> bytes:
        handle, offset, size, *_ = TRANSFER.unpack_from(body)
        return os.pread(handle, size, offset)

    def _write(self, number: int, body: memoryview) -> bytes:
        handle, offset, size, *_ = TRANSFER.unpack_from(body)
        written = os.pwrite(handle, body[TRANSFER.size : TRANSFER.size + size], offset)
        self._log.add_write(number, offset, body[TRANSFER.size : TRANSFER.size + written])
        return WRITTEN.pack(written, 0)

    def _release(self, _number: int, body: memoryview) -> bytes:
        os.close(*HANDLE.unpack_from(body))
        return b""

    def _sync_file(self, number: int, _body: memoryview) -> bytes:
        self._log.add(SyncFile(number))
        return b""

    def _open_folder(self, number: int, _body: memoryview) -> bytes:
        handle = os.open(self._nodes[number].path, os.O_RDONLY | os.O_DIRECTORY)
        return OPENED.pack(handle, 0, 0)

    def _read_folder(self, _number: int, body: memoryview) -> bytes:
        handle, offset, size, *_ = TRANSFER.unpack_from(body)
        if offset == 0:
            with os.scandir(handle) as found:
                self._listings[handle] = [
                    (os.fsencode(one.name), one.inode(), one.stat(follow_symlinks=False).st_mode) for one in found
                ]
        return directory(self._listings[handle], first=offset, room=size)

    def _release_folder(self, number: int, body: memoryview) -> bytes:
        [handle] = HANDLE.unpack_from(body)
        self._listings.pop(handle, None)
        return self._release(number, body)

    def _sync_folder(self, number: int, _body: memoryview) -> bytes:
        self._log.add(SyncFolder(number))
        return b""

    def _allocate(self, number: int, body: memoryview) -> bytes:
        handle, offset, length, mode, _ = ALLOCATE.unpack_from(body)
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            raise OSError(errno.ENOTSUP, "not recorded")
        if _libc.fallocate(handle, mode, offset, length):
            raise OSError(ctypes.get_errno(), "fallocate")
        zeroes = bool(mode & (_PUNCH_HOLE | _ZERO_RANGE))
        self._log.add(Allocate(number, offset, length, grows=not mode & _KEEP_SIZE, zeroes=zeroes))
        return b""

    def _seek(self, _number: int, body: memoryview) -> bytes:
        handle, offset, whence, _ = SEEK.unpack_from(body)
        return SOUGHT.pack(os.lseek(handle, offset, whence))
