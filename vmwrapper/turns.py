"""One job at a time of a project: for what would slow down the computer if all did it at once."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

if sys.platform == "win32":

    def _take(place: int) -> None:
        """There a folder can't be locked: they go without turns."""

else:
    import fcntl

    def _take(place: int) -> None:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)


_LOOK_S = 0.5


@asynccontextmanager
async def turn(place: Path) -> AsyncIterator[None]:
    """Wait until no other process has its turn at this folder or file, then have it. The kernel ends it with us.

    Where it can't be locked, as on some file systems of networks, nobody waits.
    """
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        while not _is_taken(descriptor):  # noqa: ASYNC110  (another process has it)
            await asyncio.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _is_taken(place: int) -> bool:
    try:
        _take(place)
    except BlockingIOError:
        return False
    except OSError:
        pass  # it knows no locks
    return True
