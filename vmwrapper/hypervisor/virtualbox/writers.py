"""Which file somebody is writing: a guest, in a folder that it shares with this host.

Source: fcntl(2), "Leases": a file that anybody has open for writing gets no read lease.
"""

import os
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

if sys.platform == "linux":
    import fcntl


def being_written(folders: Iterable[Path]) -> Path | None:
    """A file in these folders that somebody has open for writing; None where nobody has, or none can tell. Blocks.

    Linux tells, on file systems that have leases. A hostile guest may have made what is there.
    """
    if sys.platform != "linux":
        return None
    return next((path for folder in folders for path in _files(folder) if _is_written(path)), None)


def _files(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder):
        yield from (Path(directory, name) for name in names)


def _is_written(path: Path) -> bool:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return False
        fcntl.fcntl(
            opened, fcntl.F_SETSIG, signal.SIGURG
        )  # who opens it now waits until we close it, and we don't care
        fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(opened)
    return False
