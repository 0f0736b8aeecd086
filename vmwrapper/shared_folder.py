"""A folder of the host that a guest shares: what is in there is the guest's, and may be anything at any moment.

So no link is followed on the way to a file, nothing but a regular file is read, and of each only so much.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import HostDiskFailed, JobError, OutputTooLarge
from vmwrapper.hypervisor.inputs import Input, contents, inputs
from vmwrapper.hypervisor.interface import MIB, FileKind

_CHUNK_BYTES = 4 * MIB
_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | getattr(os, "O_DIRECTORY", 0)
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
_KINDS = {
    errno.ENOENT: FileKind.MISSING,
    errno.ENOTDIR: FileKind.MISSING,
    errno.ENAMETOOLONG: FileKind.MISSING,
    errno.ELOOP: FileKind.LINK,
    errno.ENXIO: FileKind.SPECIAL,
}
"""What a name stands for that can't be opened so."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Another one for a file that was written to or touched."""

    changed_ns: int
    """By the clock of whoever set it."""
    size: int
    inode: int


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of a file."""

    content: bytes
    stamp: Stamp
    """From before it was read."""


class SharedFolder:
    """See `MachineSpec.shared`. Names have `/` between folders, and no `.` or `..`."""

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        """`limit_bytes` is for all files in there."""
        self.path = path
        self._limit_bytes = limit_bytes

    def make(self) -> None:
        """Have the folder, with what may be in there. Raises HostDiskFailed."""
        with _host_disk(self.path):
            self.path.mkdir(mode=0o700, exist_ok=True)

    async def fill(self, files: Mapping[str, Path]) -> None:
        """Have these in there, and nothing else, while no guest sees it. The executable bit is kept.

        Raises JobError for files that can't be read or are larger than there is room for, and HostDiskFailed.
        """
        await to_thread_and_back(self._empty)
        ours = await to_thread_and_back(inputs, files)
        if sum(file.size for file in ours) > self._limit_bytes:
            size_mib, room_mib = sum(file.size for file in ours) // MIB, self._limit_bytes // MIB
            raise JobError(
                f"the inputs have {size_mib} MiB, the shared folder {room_mib} MiB for them: raise <disk_mb>"
            )
        for file in ours:
            await self._put(file)

    def _empty(self) -> None:
        with _host_disk(self.path):
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    async def _put(self, file: Input) -> None:
        place = self.path / file.name
        chunks = contents([file], _Unchecked())
        with _host_disk(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as opened:
                while chunk := await to_thread_and_back(next, chunks, b""):
                    await to_thread_and_back(opened.write, chunk)
                os.fchmod(opened.fileno(), 0o755 if file.executable else 0o644)

    def names(self) -> set[str]:
        """What is in there, without what is in folders in there."""
        with _host_disk(self.path):
            return {path.name for path in self.path.iterdir()}

    def used_bytes(self) -> int:
        """The apparent sizes of all that is in there."""
        walk = os.fwalk(self.path, follow_symlinks=False)
        return sum(_size(name, folder) for _, _, names, folder in walk for name in names)

    def beginning(self, name: str, *, limit_bytes: int) -> Excerpt | None:
        """A file's first bytes, or None where there is no regular file."""
        return self._excerpt(name, limit_bytes, of_end=False)

    def end(self, name: str, *, limit_bytes: int) -> Excerpt | None:
        """The same of its last."""
        return self._excerpt(name, limit_bytes, of_end=True)

    def _excerpt(self, name: str, limit_bytes: int, *, of_end: bool) -> Excerpt | None:
        with _host_disk(self.path / name), self._opened(name) as opened:
            if isinstance(opened, FileKind):
                return None
            stamp = _stamp(opened)
            content = os.pread(opened, limit_bytes, max(stamp.size - limit_bytes, 0) if of_end else 0)
            return Excerpt(content, stamp)

    def stamp(self, name: str) -> Stamp | None:
        """A file's, or None where there is no regular file."""
        found = self.beginning(name, limit_bytes=0)
        return found.stamp if found else None

    def remove(self, name: str) -> None:
        """Have no such file; what else has that name stays."""
        with _host_disk(self.path / name), self._opened(name) as opened:
            if isinstance(opened, FileKind):
                return
            *folders, last = name.split("/")
            with _folder(self.path, folders) as folder:
                os.unlink(last, dir_fd=folder)

    async def get(self, files: Mapping[str, Path]) -> Mapping[str, FileKind]:
        """Copy the regular files among these out; what each name stands for. To be used once no guest runs.

        `files` maps names to files of the host, which must not exist. Raises OutputTooLarge and HostDiskFailed.
        """
        left_bytes, kinds = self._limit_bytes, {}
        for name, place in files.items():
            with _host_disk(place), self._opened(name) as opened:
                kinds[name] = opened if isinstance(opened, FileKind) else FileKind.REGULAR
                if not isinstance(opened, FileKind):
                    left_bytes -= os.fstat(opened).st_size
                    if left_bytes < 0:
                        raise OutputTooLarge("the outputs are larger than the shared folder may be: see <disk_mb>")
                    await _copy(opened, place)
        return kinds

    @contextmanager
    def _opened(self, name: str) -> Iterator[int | FileKind]:
        """A regular file's descriptor, or what the name stands for instead. Raises OSError."""
        *folders, last = name.split("/")
        try:
            with _folder(self.path, folders) as folder:
                opened = os.open(last, _FILE, dir_fd=folder)
        except OSError as error:
            if error.errno not in _KINDS:
                raise
            yield _KINDS[error.errno]
            return
        try:
            mode = os.fstat(opened).st_mode
            yield opened if stat.S_ISREG(mode) else FileKind.DIRECTORY if stat.S_ISDIR(mode) else FileKind.SPECIAL
        finally:
            os.close(opened)


class _Unchecked:
    """Nobody but us is on the way."""

    def update(self, data: bytes, /) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


@contextmanager
def _folder(path: Path, inner: list[str]) -> Iterator[int]:
    """The descriptor of a folder, to which no link leads."""
    folder = os.open(path, _FOLDER)
    try:
        for name in inner:
            outer, folder = folder, os.open(name, _FOLDER, dir_fd=folder)
            os.close(outer)
        yield folder
    finally:
        os.close(folder)


async def _copy(opened: int, place: Path) -> None:
    executable = os.fstat(opened).st_mode & stat.S_IXUSR
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    copied = os.open(place, flags, 0o755 if executable else 0o644)
    try:
        while await to_thread_and_back(os.sendfile, copied, opened, None, _CHUNK_BYTES):
            pass
    finally:
        os.close(copied)


def _stamp(opened: int) -> Stamp:
    status = os.fstat(opened)
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def _size(name: str, folder: int) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except OSError:
        return 0  # gone meanwhile


@contextmanager
def _host_disk(what: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostDiskFailed(f"can't use {what}: {error.strerror}") from error
