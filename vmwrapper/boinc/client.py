"""The app API with a real client on the other side."""

import asyncio
import itertools
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NoReturn

from vmwrapper.boinc import slot_files
from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.channels import Channel, Channels, open_channels
from vmwrapper.boinc.init_data import SHARED_BY_FILE, InitData, read_init_data
from vmwrapper.boinc.slot_lock import slot_lock
from vmwrapper.concurrency import beside
from vmwrapper.errors import (
    ClientUnreachable,
    HostDiskFailed,
    QuitRequested,
    SlotBusy,
    TemporaryFailure,
    VmwrapperError,
)

log = logging.getLogger(__name__)

LOCK_WAIT_S = 35.0
"""How long the wrapper of a client that was killed may still be about."""

_POLL_S = 0.1
_POLLS_PER_LOOK_FOR_CLIENT = 100
_POLLS_WITHOUT_HEARTBEAT = 300
_LAST_STATUS_S = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Client:
    """See `AppApi`. What the client told of the job is known inside the episode."""

    _init_data: InitData

    def __init__(self, slot: Path) -> None:
        self.slot = slot.absolute()
        self._held = ExitStack()
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._status: Status | None = None  # not sent yet
        self._suspended = False

    @property
    def project(self) -> str:
        return self.project_dir.name

    @property
    def project_dir(self) -> Path:
        return self._init_data.project_dir

    @property
    def result_name(self) -> str:
        return self._init_data.result_name

    def resolve(self, logical_name: str) -> Path:
        return slot_files.resolve(self.slot, logical_name)

    @asynccontextmanager
    async def episode(self) -> AsyncIterator[None]:
        """Source of the order: BOINC's api/boinc_api.cpp, boinc_init_options_general."""
        with self._signals():
            await self._lock()
            self._init_data = read_init_data(self.slot)
            if self._init_data.shm_key != SHARED_BY_FILE:
                raise ClientUnreachable(
                    "the client shares no file with us: the app version's <api_version> is below 6.0"
                )
            (self.slot / slot_files.FINISH_FILE).unlink(missing_ok=True)  # the client never removes a stale one
            with open_channels(self.slot) as channels:
                async with beside(self._listen(channels)):
                    yield
                    await self._last_status_sent()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A shutdown of the host, or Ctrl-C where a person runs the client, is a request to quit."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._requests.put_nowait, Request.QUIT)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

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
            reason = "Waiting to acquire slot directory lock. Another instance may be running."
            raise SlotBusy(reason) from busy

    async def _listen(self, channels: Channels) -> NoReturn:
        """Keep both ends talking. A message that waits for 3 minutes would have the client kill us."""
        heard = 0
        for poll in itertools.count():
            if message := channels.receive(Channel.PROCESS_CONTROL_REQUEST):
                self._obey(message)
            if channels.receive(Channel.HEARTBEAT):
                heard = poll
            if self._is_client_gone(poll, heard):
                log.info("The client is gone")
                self._requests.put_nowait(Request.QUIT)
            if self._status and not self._suspended and channels.send(Channel.APP_STATUS, self._message(self._status)):
                self._status = None
            await asyncio.sleep(_POLL_S)
        raise AssertionError  # there is no last number

    def _obey(self, message: bytes) -> None:
        for request in Request:
            if f"<{request.value}/>".encode() in message:
                log.debug("The client wants: %s", request.value)
                self._suspended = request is Request.SUSPEND
                self._requests.put_nowait(request)

    def _is_client_gone(self, poll: int, heard: int) -> bool:
        if not (pid := self._init_data.client_pid):
            return poll - heard == _POLLS_WITHOUT_HEARTBEAT
        if poll % _POLLS_PER_LOOK_FOR_CLIENT:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and another user's
            return False
        return False

    def _message(self, status: Status) -> bytes:
        begin, end = self._init_data.fraction_done_start, self._init_data.fraction_done_end
        return (
            f"<current_cpu_time>{status.cpu_time_s:e}</current_cpu_time>\n"
            f"<checkpoint_cpu_time>{self._init_data.checkpoint_cpu_time_s:e}</checkpoint_cpu_time>\n"
            f"<fraction_done>{begin + status.fraction_done * (end - begin):e}</fraction_done>\n"
        ).encode()

    async def _last_status_sent(self) -> None:
        for _ in range(round(_LAST_STATUS_S / _POLL_S)):
            if self._status is None:
                break
            await asyncio.sleep(_POLL_S)

    async def requests(self) -> AsyncIterator[Request]:
        while True:
            yield await self._requests.get()

    def report(self, status: Status) -> None:
        self._status = status

    def end(self, error: VmwrapperError | None) -> int:
        with self._held:
            try:
                return self._end(error)
            except HostDiskFailed as failed:
                log.error("%s", failed)  # noqa: TRY400  (a person needs no traceback)
                return 0  # without a file: the client starts us again

    def _end(self, error: VmwrapperError | None) -> int:
        match error:
            case None:
                slot_files.write_finish(self.slot)
                log.info("Finish called")
                return 0
            case QuitRequested():
                log.info("%s", error)
                return 0
            case TemporaryFailure():
                log.error("%s", error)
                slot_files.write_temporary_exit(self.slot, error)
                return 0
        log.error("%s", error)
        return error.exit_status
