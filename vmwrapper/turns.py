"""One job at a time of a project: for what would slow down the computer if all did it at once."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

if sys.platform == "win32":

    def _take(folder: int) -> None:
        """There a folder can't be locked: they go without turns."""

else:
    import fcntl

    def _take(folder: int) -> None:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


_LOOK_S = 0.5


@asynccontextmanager
async def turn(folder: Path) -> AsyncIterator[None]:
    """Wait until no other process has its turn in this folder, then have it. The kernel ends it with the process.

    Where the folder can't be locked, as on some file systems of networks, nobody waits.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        while not _is_taken(descriptor):  # noqa: ASYNC110  (another process has it)
            await asyncio.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _is_taken(folder: int) -> bool:
    try:
        _take(folder)
    except BlockingIOError:
        return False
    except OSError:
        pass  # it knows no locks
    return True
