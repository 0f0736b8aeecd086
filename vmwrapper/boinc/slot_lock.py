"""One wrapper at a time in a slot."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vmwrapper.errors import HostDiskFailed, SlotBusy

LOCK_FILE = "boinc_lockfile"


@contextmanager
def slot_lock(slot: Path) -> Iterator[None]:
    """Hold the slot's lock, which the kernel releases with the process. Raises SlotBusy where another has it.

    It is a POSIX record lock: whoever opens and closes the file meanwhile in this process drops it.
    """
    path = slot / LOCK_FILE
    try:
        lock = path.open("wb")
    except OSError as error:
        raise HostDiskFailed(f"can't write into the job's directory: {error.strerror}: {path}") from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SlotBusy(f"another vmwrapper is at work in {slot}") from error
        if not _is_same_file(lock, path):  # its owner unlinked it between our opening and our locking
            raise SlotBusy(f"another vmwrapper has just ended in {slot}: try again")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
