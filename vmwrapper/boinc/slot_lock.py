"""One wrapper at a time in a slot.

Source: BOINC's lib/filesys.cpp, FILE_LOCK. On Windows it opens the file for itself alone: who has it open at all has
the lock, so that ours keeps it out, and is kept out by it.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vmwrapper.errors import HostDiskFailed, SlotBusy

if sys.platform == "win32":
    import msvcrt

    def _take(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _look(file: BinaryIO) -> None:
        _take(file)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(file: BinaryIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _look(file: BinaryIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


LOCK_FILE = "boinc_lockfile"


@contextmanager
def slot_lock(slot: Path) -> Iterator[None]:
    """Hold the slot's lock, which the kernel releases with the process. Raises SlotBusy where another has it.

    It is a POSIX record lock: whoever opens and closes the file meanwhile in this process drops it.
    """
    path = slot / LOCK_FILE
    with _opened(path) as lock:
        try:
            _take(lock)
        except (BlockingIOError, PermissionError) as error:
            raise SlotBusy(f"another vmwrapper is at work in {slot}") from error
        except OSError as error:
            if error.errno != errno.ENOSYS:  # a file system without locks: BOINC goes on without one
                raise HostDiskFailed(f"can't lock the job's directory: {error.strerror}: {path}") from error
        if not _is_same_file(lock, path):  # its owner unlinked it between our opening and our locking
            raise SlotBusy(f"another vmwrapper has just ended in {slot}: try again")
        try:
            yield
        finally:
            if sys.platform != "win32":  # which unlinks no open file, and needs not to
                with suppress(OSError):  # the kernel drops the lock all the same
                    path.unlink()


def is_held(slot: Path) -> bool:
    """Whether another process holds the slot's lock, or there is no way to tell. Nothing is changed.

    Not for a process that holds it itself, which would lose it.
    """
    try:
        with (slot / LOCK_FILE).open("rb") as file:
            _look(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # also of a file system without locks
        return True
    return False


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError as error:
        if sys.platform == "win32" and isinstance(error, PermissionError):
            raise SlotBusy(f"another app is at work in {path.parent}") from error
        raise HostDiskFailed(f"can't write into the job's directory: {error.strerror}: {path}") from error


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
