"""Which file somebody is writing: a guest, in a folder that it shares with this host.

Source: fcntl(2), "Leases": a file that anybody has open for writing gets no read lease.
"""

import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from threading import Event

if sys.platform == "linux":
    import fcntl

_MOST_FILES = 10_000


def being_written(folders: Iterable[Path], enough: Event) -> Path | None:
    """A file in these folders that somebody has open for writing; None where nobody has, or none can tell.

    Linux tells, on file systems that have leases, of files that have a name, and of the first 10,000 of each folder.
    Blocks, but not for long once `enough` is set. A hostile guest may have made what is there; what is beside these
    folders is ours.
    """
    if sys.platform != "linux":
        return None
    for folder in folders:
        for path in islice(_files(folder), _MOST_FILES):
            if enough.is_set():
                return None
            if _is_written(path):
                return path if _tells(folder.parent) else None
    return None


def _files(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        yield from (Path(directory, name) for name in (*names, *folders))


def _is_written(path: Path) -> bool:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return False
        # Who opens it now waits until we close it, of which a signal tells us that does nothing.
        fcntl.fcntl(opened, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(opened)
    return False


def _tells(folder: Path) -> bool:
    """Whether a file that nobody writes gets a lease there, which it does not on NFS."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unwritten = Path(scratch, "unwritten")
            unwritten.touch()
            return not _is_written(unwritten)
    except OSError:
        return False
