"""The app API without a client: a person runs the job at a desk."""

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO

from vmwrapper.boinc.api import Request, Status
from vmwrapper.errors import HostDiskFailed, SlotBusy, VmwrapperError

log = logging.getLogger(__name__)

LOCK_FILE = "boinc_lockfile"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Standalone:
    """See `AppApi`. Logical names are names of files in `slot`; Ctrl-C and SIGTERM are requests to quit."""

    project = "standalone"

    def __init__(self, slot: Path, *, result_name: str, show: Callable[[Status], None]) -> None:
        """`show` is called with each status."""
        self.slot = slot.absolute()
        self.result_name = result_name
        self.report = show
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._heard: list[signal.Signals] = []

    def resolve(self, logical_name: str) -> Path:
        return self.slot / logical_name

    @asynccontextmanager
    async def episode(self) -> AsyncIterator[None]:
        with self._locked(), self._signals():
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the slot's lock, which the kernel releases with the process."""
        path = self.slot / LOCK_FILE
        try:
            lock = path.open("wb")
        except OSError as error:
            raise HostDiskFailed(f"can't write into the job's directory: {error.strerror}: {path}") from error
        with lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SlotBusy(f"another vmwrapper is at work in {self.slot}") from error
            if not _is_same_file(lock, path):  # its owner unlinked it between our opening and our locking
                raise SlotBusy(f"another vmwrapper has just ended in {self.slot}: try again")
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores one
        for number in self._heard:
            loop.add_signal_handler(number, self._interrupted)
        try:
            yield
        finally:
            for number in self._heard:
                loop.remove_signal_handler(number)

    def _interrupted(self) -> None:
        """Quit; a second signal ends us at once, as it ends a program that doesn't handle it."""
        log.info("Stopping; once more to stop at once")
        loop = asyncio.get_running_loop()
        for number in self._heard:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        self._requests.put_nowait(Request.QUIT)

    async def requests(self) -> AsyncIterator[Request]:
        while True:
            yield await self._requests.get()

    def end(self, error: VmwrapperError | None) -> int:
        if error is None:
            log.info("Finish called")
            return 0
        log.error("%s", error)
        return error.exit_status


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
