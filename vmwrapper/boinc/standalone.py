"""The app API without a client: a person runs the job at a desk."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.exit import SIGNALS
from vmwrapper.boinc.init_data import InitData
from vmwrapper.boinc.slot_lock import slot_lock
from vmwrapper.errors import VmwrapperError
from vmwrapper.hostile import one_line, printable

log = logging.getLogger(__name__)


class Standalone:
    """See `AppApi`. Logical names are names of files in `slot`; Ctrl-C and SIGTERM are requests to quit."""

    project = "standalone"
    project_dir = None
    network_suspended = False
    restarts = False

    def __init__(self, slot: Path, *, result_name: str, show: Callable[[Status], None]) -> None:
        """`show` is called with each status."""
        self.slot = slot.absolute()
        self.result_name = result_name
        self.init_data = InitData(project_dir=self.slot, result_name=result_name, checkpoint_period_s=0.0)
        self.report = show
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._heard: list[signal.Signals] = []

    def resolve(self, logical_name: str) -> Path:
        return self.slot / logical_name

    @asynccontextmanager
    async def episode(self) -> AsyncIterator[None]:
        with slot_lock(self.slot), self._signals():
            yield

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores one
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

    async def send_trickle_up(self, variety: str, text: str) -> None:
        log.debug("A trickle-up that nobody takes: %s: %s", one_line(variety), printable(text))

    def notify(self, notice: str) -> None:
        log.info("For the volunteer: %s", one_line(notice))

    def end(self, error: VmwrapperError | None) -> int:
        if error is None:
            log.info("Finish called")
            return 0
        log.error("%s", error)
        return error.exit_status
