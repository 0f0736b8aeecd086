"""The app API with a real client on the other side."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from vmwrapper.boinc import messages, slot_files
from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.channels import Channel, Channels, open_channels
from vmwrapper.boinc.exit import Signals, Watchdog
from vmwrapper.boinc.init_data import InitData, read_init_data
from vmwrapper.boinc.liveness import Liveness
from vmwrapper.boinc.messages import Address, Heartbeat
from vmwrapper.boinc.slot_lock import slot_lock
from vmwrapper.boinc.trickles import TrickleDown, Trickles
from vmwrapper.boinc.uploads import Uploads
from vmwrapper.concurrency import repeated
from vmwrapper.errors import (
    ClientUnreachable,
    HostDiskFailed,
    QuitRequested,
    SelfRunFailed,
    SlotBusy,
    TemporaryFailure,
    VmwrapperError,
)
from vmwrapper.exit_status import ExitStatus

log = logging.getLogger(__name__)

LOCK_WAIT_S = 35.0
"""How long the wrapper of a client that was killed may still be about."""
EXIT_LIMIT_S = 50.0
"""How long we may take to end when we are asked to; after 60 s the client kills."""

_POLL_S = 0.075
_LONG_SUSPENDED_S = 5.0
_LAZY_POLL_S = 0.3
"""When suspended for longer: each look costs 0.1 ms of CPU time, which a suspended job should not use."""
_REREAD_S = 10.0
"""How long the client may take to write a file anew, which it deletes first."""
_LAST_WORDS_S = 2.0
_WRITE_AGAIN_S = 5.0
_MOST_WRITES_AGAIN = 8
"""Together they fit into EXIT_LIMIT_S, should the client ask us to end meanwhile."""
_EXIT_STATUS = {Request.QUIT: 0, Request.ABORT: ExitStatus.ABORTED_BY_CLIENT}


Repeat = Callable[[Callable[[], float]], AbstractAsyncContextManager[None]]
"""As `repeated` does."""


class Client:
    """See `AppApi`. From its making on, signals do as `Signals` says; so it is made in the main thread."""

    restarts = True

    _init_data: InitData
    _liveness: Liveness

    def __init__(
        self,
        slot: Path,
        *,
        exit_limit_s: float = EXIT_LIMIT_S,
        repeat: Repeat = repeated,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`exit_limit_s` after a request to quit or abort, or a signal, the process is killed unless it has ended.

        `repeat` has the client listened to as long as an episode lasts, beside the event loop. `sleep` is how `end`
        waits, outside of it.
        """
        self.slot = slot.absolute()
        self.trickles = Trickles(self.slot)
        self.uploads = Uploads(self.slot)
        self._signals = Signals()
        self._watchdog = Watchdog(exit_limit_s)
        self._held = ExitStack()
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._status: Status | None = None  # not sent yet
        self._notice = ""
        self._addresses: dict[Address, bytes] = {}  # not sent yet
        self._heartbeat = Heartbeat()
        self._repeat = repeat
        self._sleep = sleep
        self._suspended_at_s = 0.0
        self._reread_until_s: float | None = None
        self._suspended = False
        self._done = False

    @property
    def init_data(self) -> InitData:
        return self._init_data

    @property
    def project(self) -> str:
        return self.project_dir.name

    @property
    def project_dir(self) -> Path:
        return self._init_data.project_dir

    @property
    def result_name(self) -> str:
        return self._init_data.result_name

    @property
    def heartbeat(self) -> Heartbeat:
        """What the client said last of our memory and the network."""
        return self._heartbeat

    @property
    def network_suspended(self) -> bool:
        return self._heartbeat.network_suspended

    def resolve(self, logical_name: str) -> Path:
        return slot_files.resolve(self.slot, logical_name)

    @asynccontextmanager
    async def episode(self) -> AsyncIterator[None]:
        """The client is heard first. Source: BOINC's api/boinc_api.cpp, boinc_init_options_general."""
        self._loop = asyncio.get_running_loop()
        self._watchdog.watch()
        with self._signals.heard(partial(self._want, Request.QUIT)):
            self._init_data = read_init_data(self.slot)
            self._liveness = Liveness(self._init_data.client_pid, self._loop.time)
            with open_channels(self.slot, self._init_data) as channels:
                try:
                    async with self._repeat(partial(self._converse, channels)):
                        await self._lock()
                        slot_files.remove_finish(self.slot)
                        self.trickles.begin()
                        self.uploads.begin()
                        yield
                        self._done = True
                        await self._last_words_said()
                finally:
                    if not self._liveness.look(is_news=True):
                        self._say(channels)  # the client also reads it when we have ended

    async def _lock(self) -> None:
        """Hold the slot until `end`, so that what is said there is not taken for another wrapper's."""
        try:
            self._held.enter_context(slot_lock(self.slot))
        except SlotBusy as busy:
            log.info("%s: waiting for %g s", busy, LOCK_WAIT_S)
            await asyncio.sleep(LOCK_WAIT_S)
        else:
            return
        try:
            self._held.enter_context(slot_lock(self.slot))
        except SlotBusy as busy:
            reason = "Waiting to acquire slot directory lock.  Another instance may be running."  # as BOINC's own
            raise SlotBusy(reason) from busy

    def _converse(self, channels: Channels) -> float:
        """Keep both ends talking; when to do so again. What waits for 3 minutes would have the client kill us.

        Once the client has gone, the channels may be the next one's, and another wrapper's: they are left alone.
        """
        if self._liveness.has_gone:
            return _POLL_S
        now_s, is_news = self._loop.time(), channels.are_unread
        if self._liveness.look(is_news=is_news):
            log.info("The client is gone")
            self._want(Request.QUIT)
            return _POLL_S
        if is_news:
            self._listen(channels, now_s)
        if self._reread_until_s is not None:
            self._reread(is_last_try=now_s >= self._reread_until_s)
        if self._status or self._addresses or self.trickles.is_untold or self.uploads.is_untold:
            self._say(channels)
        return _LAZY_POLL_S if self._suspended and now_s - self._suspended_at_s > _LONG_SUSPENDED_S else _POLL_S

    def _listen(self, channels: Channels, now_s: float) -> None:
        if message := channels.receive(Channel.PROCESS_CONTROL_REQUEST):
            for request in messages.requests_in(message):
                log.debug("The client wants: %s", request.value)
                self._want(request)
            if messages.REREAD_INIT_DATA in message:
                self._reread_until_s = now_s + _REREAD_S
        if (message := channels.receive(Channel.TRICKLE_DOWN)) and messages.HAVE_TRICKLE_DOWN in message:
            self._loop.call_soon_threadsafe(self.trickles.have_come)
        if message := channels.receive(Channel.HEARTBEAT):
            self._heartbeat = messages.heard(self._heartbeat, message)
            if messages.is_heartbeat(message):
                self._liveness.heard()

    def _say(self, channels: Channels) -> None:
        """Say all that waits, and for which there is room."""
        if (status := self._status) and not self._suspended:
            message = messages.status_message(status, self._init_data)
            if (message is None or channels.send(Channel.APP_STATUS, message)) and self._status is status:
                self._status = None
        news = messages.HAVE_TRICKLE_UP if self.trickles.is_untold else b""
        news += messages.HAVE_UPLOAD_FILE if self.uploads.is_untold else b""
        if news and channels.send(Channel.TRICKLE_UP, news):
            self.trickles.is_untold = self.uploads.is_untold = False
        for kind, message in list(self._addresses.items()):
            if channels.send(Channel.GRAPHICS_REPLY, message):
                del self._addresses[kind]

    def _want(self, request: Request) -> None:
        """From any thread, and from a signal handler."""
        self._suspended, self._suspended_at_s = request is Request.SUSPEND, self._loop.time()
        if request in _EXIT_STATUS:
            self._watchdog.end_by(_EXIT_STATUS[request])
        self._loop.call_soon_threadsafe(self._requests.put_nowait, request)

    def _reread(self, *, is_last_try: bool) -> None:
        """Take what the client says anew, but not of another job or by another client, nor what is unusable."""
        try:
            data = read_init_data(self.slot)
        except ClientUnreachable as error:
            if is_last_try:
                log.debug("What the client says of the job stays: %s", error)
                self._reread_until_s = None
            return
        self._reread_until_s = None
        if _identity(data) == _identity(self._init_data):
            self._init_data = data

    async def _last_words_said(self) -> None:
        for _ in range(round(_LAST_WORDS_S / _POLL_S)):
            is_all_said = self._status is None and not self.trickles.is_untold and not self.uploads.is_untold
            if is_all_said or self._liveness.has_gone:
                break
            await asyncio.sleep(_POLL_S)

    async def requests(self) -> AsyncIterator[Request]:
        while True:
            request = await self._requests.get()
            if not self._done:
                yield request

    def report(self, status: Status) -> None:
        self._status = status

    async def send_trickle_up(self, variety: str, text: str) -> None:
        await self.trickles.send_up(variety, text)

    def trickle_downs(self) -> AsyncIterator[TrickleDown]:
        """What the project's server says; see `Trickles.downs`."""
        return self.trickles.downs()

    async def upload(self, logical_name: str) -> None:
        """Have an output file uploaded while the job goes on; see `Uploads.request`."""
        await self.uploads.request(logical_name)

    def upload_status(self, logical_name: str) -> int | None:
        """How its upload ended, None before it has; see `Uploads.status`."""
        return self.uploads.status(logical_name)

    def show_web_graphics(self, url: str) -> None:
        """Let the client's manager offer a page about the job. Raises ValueError where it is no line of 255 bytes."""
        self._addresses[Address.WEB_GRAPHICS] = messages.address_message(Address.WEB_GRAPHICS, url)

    def show_remote_desktop(self, address: str) -> None:
        """Let it offer a look at a screen, by `host:port`. Raises ValueError where it is no line of 255 bytes."""
        self._addresses[Address.REMOTE_DESKTOP] = messages.address_message(Address.REMOTE_DESKTOP, address)

    def notify(self, notice: str) -> None:
        self._notice = notice

    def end(self, error: VmwrapperError | None) -> int:
        self._signals.ignore()
        with self._held:
            exit_status = self._end(error)
        self._watchdog.call_off()
        return exit_status

    def _end(self, error: VmwrapperError | None) -> int:
        match error:
            case None:
                if self._is_written(partial(slot_files.write_finish, self.slot, notice=self._notice)):
                    log.info("Finish called")
                return 0
            case QuitRequested():
                log.info("%s", error)
                return 0
            case TemporaryFailure():
                log.error("%s", error)
                self._is_written(partial(slot_files.write_temporary_exit, self.slot, error))
                return 0
        log.error("%s", error)
        if self._notice and isinstance(error, SelfRunFailed):  # the status counts, and not the file
            status = error.exit_status
            self._is_written(partial(slot_files.write_finish, self.slot, status=status, notice=self._notice))
        return error.exit_status

    def _is_written(self, write: Callable[[], None]) -> bool:
        """Try for a while to leave a file for the client, as far as the watchdog lets us.

        Without it the client starts us again at once, a hundred times in some minutes, and then gives the job up.
        """
        for tries in itertools.count():
            try:
                write()
            except HostDiskFailed as failed:
                if tries == _MOST_WRITES_AGAIN or self._watchdog.left_s < 2 * _WRITE_AGAIN_S:
                    log.error("Given up: %s", failed)  # noqa: TRY400  (a person needs no traceback)
                    return False
                if tries == 0:
                    log.warning("%s: tried again for up to %g s", failed, _MOST_WRITES_AGAIN * _WRITE_AGAIN_S)
                self._sleep(_WRITE_AGAIN_S)
            else:
                break
        return True


def _identity(data: InitData) -> tuple[object, ...]:
    return data.project_dir, data.result_name, data.client_pid, data.shm_key, data.comm_obj_name
