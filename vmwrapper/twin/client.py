"""A twin of the BOINC client that runs one job, and does to it what it is told.

Source: BOINC's client/app_start.cpp and client/app_control.cpp; what was seen of version 7.20.5.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NoReturn

import psutil

from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.channels import Channel
from vmwrapper.boinc.trickles import TRICKLE_UP_FILE
from vmwrapper.boinc.uploads import UPLOAD_REQUEST, UPLOAD_STATUS
from vmwrapper.concurrency import beside
from vmwrapper.exit_status import ExitStatus
from vmwrapper.hostile import one_line, printable
from vmwrapper.twin.app import App, AppLog, running_app
from vmwrapper.twin.exits import Ending, Fate, judge
from vmwrapper.twin.messages import ControlQueue, Figures, heartbeat, read_status
from vmwrapper.twin.slot import TwinSlot

log = logging.getLogger(__name__)

EXIT_TOO_MANY = -226 & 0xFF
"""ERR_TOO_MANY_EXITS, as a process can say it."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOG_LOOK_S = 0.1
_MOST_OF_RAM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The client's habits; tests are in a hurry."""

    poll_s: float = 1.0
    kill_after_s: float = 60.0
    """An app that ignores quit or abort for so long is killed,"""
    unread_s: float = 180.0
    """and one that leaves a request unread while another waits."""
    most_exits: int = 100
    """A job that had more premature or temporary exits without a checkpoint is given up."""


REAL_PACE = Pace()


def say(text: str) -> None:
    """Tell the person who plays what the client does."""
    log.info("client: %s", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One run of the app, for the summary."""

    began_at: str
    lasted_s: float
    asked: str
    ending: Ending


class ClientTwin:
    """Runs the job in a slot until it is over. Make it inside the event loop, and use it once.

    What can be done to the job needs an app that runs: `runs` tells.
    """

    def __init__(
        self,
        slot: TwinSlot,
        *,
        command: Sequence[str],
        tells_pid: bool,
        show: Callable[[Status], None],
        pace: Pace,
    ) -> None:
        """`command` starts the app, which misses heartbeats only where it is not told our pid, to look for us by that.

        `show` is called with each status that it sends.
        """
        self._slot, self._memory = slot, slot.memory
        self._command, self._tells_pid = command, tells_pid
        self._show, self._pace = show, pace
        self._loop = asyncio.get_running_loop()
        self._control = ControlQueue(slot.memory, self._loop.time)
        self._log = AppLog(slot.path)
        self.app: App | None = None
        """The one that runs."""
        self._stopped, self._may_start, self._shutdown = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._said_more = asyncio.Event()
        self._may_start.set()
        self._suspended_by: set[str] = set()
        self._checkpoint_elapsed_s = 0.0
        self._working_set_bytes = 0
        self._exits_without_checkpoint = 0
        self.runs = asyncio.Event()
        self.sends_heartbeats = True
        """Until the next start, which is a client's that is there."""
        self.network_suspended = False
        self.figures = Figures()
        self.elapsed_s = 0.0
        self.peak_bytes = 0
        self.episodes: list[Episode] = []

    async def run(self) -> int:
        """The exit status of the job, 0 for success; 130 where a person ended the client before."""
        self._slot.link()
        with self._signals():
            async with beside(self._poll(), self._read_log()):
                await self._keep_running()
        return ExitStatus.INTERRUPTED if self._shutdown.is_set() else self.episodes[-1].ending.exit_status

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A person's Ctrl-C ends a client, which ends its app; the second one is obeyed at once."""
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._interrupted)
        try:
            yield
        finally:
            for number in _SIGNALS:
                self._loop.remove_signal_handler(number)

    def _interrupted(self) -> None:
        if self._shutdown.is_set() and self.app:
            self.app.kill()
        if self._shutdown.is_set():
            return
        say("shutting down: the app is to quit; once more to kill it")
        self._shutdown.set()
        self._may_start.set()
        if self.app:
            self._end(Request.QUIT)

    @property
    def is_shutting_down(self) -> bool:
        """Whether a person has ended the client."""
        return self._shutdown.is_set()

    # The app's life

    async def _keep_running(self) -> None:
        while not self._shutdown.is_set():
            ending = await self._episode()
            if ending.is_final or self._is_given_up(ending):
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(ending.delay_s or self._pace.poll_s):
                    await self._shutdown.wait()
            await self._may_start.wait()

    def _is_given_up(self, ending: Ending) -> bool:
        """Whether the client has had enough of it, which is the last ending then."""
        self._exits_without_checkpoint += ending.fate in {Fate.PREMATURE, Fate.POSTPONED}
        if self._exits_without_checkpoint <= self._pace.most_exits:
            return False
        meaning = f"more than {self._pace.most_exits} such exits without a checkpoint: compute error"
        say(meaning)
        final = Ending(fate=Fate.FAILED, meaning=meaning, exit_status=EXIT_TOO_MANY)
        self.episodes[-1] = replace(self.episodes[-1], ending=final)
        return True

    async def _episode(self) -> Ending:
        self._prepare_start()
        began_at, began_s = time.strftime("%H:%M:%S"), self._loop.time()
        async with running_app(self._command, self._slot.path) as app:
            say(f"started the app, pid {app.pid}")
            self.app = app
            self._stopped.clear()
            self.runs.set()
            if self.is_shutting_down:
                self._end(Request.QUIT)
            status = await app.ended()
            self.runs.clear()
            self.app = None
        self._receive()
        self._print_log()
        ending = judge(self._slot.path, status=status, asked=app.asked, outputs=self._slot.outputs)
        say(f"the app ended: {ending.meaning}")
        await self._after_end(app)
        asked = app.asked.value if app.asked else ""
        lasted_s = self._loop.time() - began_s
        self.episodes.append(Episode(began_at=began_at, lasted_s=lasted_s, asked=asked, ending=ending))
        self._stopped.set()
        return ending

    def _prepare_start(self) -> None:
        """Source: ACTIVE_TASK::start. What was computed after the last checkpoint is lost, as far as a client knows."""
        self._slot.forget_temporary_exit()
        self.elapsed_s = self._checkpoint_elapsed_s
        self._write_init_data()
        self._memory.clear()
        self._control.clear()
        self._log.begin()
        self._suspended_by.clear()
        self.sends_heartbeats = True

    def _write_init_data(self) -> None:
        self._slot.write_init_data(
            client_pid=os.getpid() if self._tells_pid else 0,
            cpu_time_s=self.figures.checkpoint_cpu_time_s,
            elapsed_s=self._checkpoint_elapsed_s,
        )

    async def _after_end(self, app: App) -> None:
        left = [*await app.end_family(), *self._slot.left_by_app()]
        if left:
            say(f"left behind by the app: {', '.join(map(one_line, left))}")
        pid = self.figures.other_pid
        self.figures = replace(self.figures, other_pid=None)  # by the next end another process may have it
        if pid is None:
            return
        if pid <= 0:
            say(f"the app named other_pid {pid}: the client would now kill itself")
            return
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            say(f"killed the app's other_pid {pid}")

    # What the client does each second

    async def _poll(self) -> NoReturn:
        while True:
            if self.app:
                self._look_after(self.app)
            await asyncio.sleep(self._pace.poll_s)

    def _look_after(self, app: App) -> None:
        self._working_set_bytes = app.look()
        self.peak_bytes = max(self.peak_bytes, self._working_set_bytes)
        if not self._suspended_by:
            self.elapsed_s += self._pace.poll_s
        if self.sends_heartbeats:
            self._memory.send(Channel.HEARTBEAT, self._heartbeat())
        self._control.flush()
        self._receive()
        self._enforce(app)

    def _heartbeat(self) -> str:
        return heartbeat(
            working_set_bytes=self._working_set_bytes,
            most_bytes=psutil.virtual_memory().total * _MOST_OF_RAM,
            network_suspended=self.network_suspended,
        )

    def _receive(self) -> None:
        if message := self._memory.receive(Channel.APP_STATUS):
            self._take_status(read_status(message, self.figures))
        message = self._memory.receive(Channel.TRICKLE_UP)
        if "<have_new_trickle_up/>" in message:
            self._take_trickle()
        if "<have_new_upload_file/>" in message:
            self._upload()
        if message := self._memory.receive(Channel.GRAPHICS_REPLY):
            say(f"the app has graphics: {one_line(message)}")

    def _take_status(self, figures: Figures) -> None:
        if figures.checkpoint_cpu_time_s != self.figures.checkpoint_cpu_time_s:
            say(f"the app made a checkpoint, at {figures.checkpoint_cpu_time_s:.2f} s of CPU time")
            self._checkpoint_elapsed_s = self.elapsed_s
            self._exits_without_checkpoint = 0
        self.figures = figures
        self._show_figures()

    def _show_figures(self) -> None:
        seen, activity = self.figures, "suspended" if self._suspended_by else "running"
        self._show(Status(fraction_done=min(1.0, seen.fraction_done), cpu_time_s=seen.cpu_time_s, activity=activity))

    def _take_trickle(self) -> None:
        path = self._slot.path / TRICKLE_UP_FILE
        with suppress(FileNotFoundError):
            say(f"trickle-up: {one_line(printable(path.read_bytes()))}")
            path.unlink()

    def _upload(self) -> None:
        """As if each upload were done at once. Source: ACTIVE_TASK::handle_upload_files and upload_notify_app."""
        for wish in self._slot.path.glob(f"{UPLOAD_REQUEST}*"):
            name = wish.name.removeprefix(UPLOAD_REQUEST)
            wish.unlink()
            say(f"uploaded {one_line(name)}")
            (self._slot.path / f"{UPLOAD_STATUS}{name}").write_text("<status>0</status>\n", encoding="ascii")
            self._memory.send(Channel.TRICKLE_DOWN, "<upload_file_status/>\n")

    def _enforce(self, app: App) -> None:
        now_s = self._loop.time()
        if app.kill_at_s is not None and now_s >= app.kill_at_s and app.asked:
            say(f"the app ignores {app.asked.value}: killing it")
            app.kill()
        elif self._control.blocked_s > self._pace.unread_s:
            say("the app reads no requests: killing it")
            app.kill()

    async def _read_log(self) -> NoReturn:
        while True:
            self._print_log()
            await asyncio.sleep(_LOG_LOOK_S)

    def _print_log(self) -> None:
        for line in self._log.news():
            print(line, file=sys.stderr)  # noqa: T201  (above the progress line)
            self._said_more.set()

    # What can be done to the job

    async def said(self, text: str) -> None:
        """Wait until the app has said it in its log: since it was started, and behind what was waited for before."""
        while not self._log.find(text):
            self._said_more.clear()
            await self._said_more.wait()

    def suspend(self, reason: str) -> None:
        """Have the job stand still, for one more reason."""
        if not self._suspended_by:
            self._control.put(Request.SUSPEND.value)
        self._suspended_by.add(reason)
        self._show_figures()

    def resume(self, reason: str) -> None:
        """Take the reason back; the job goes on when there is no other."""
        was_suspended = bool(self._suspended_by)
        self._suspended_by.discard(reason)
        if was_suspended and not self._suspended_by:
            self._control.put(Request.RESUME.value)
        self._show_figures()

    async def quit(self) -> None:
        """Have the app end, and wait for it; it is started again after `start`."""
        self._may_start.clear()
        self._end(Request.QUIT)
        await self._stopped.wait()

    async def kill(self) -> None:
        """As `quit`, but the app is not asked."""
        assert self.app is not None  # noqa: S101  (it runs)
        self._may_start.clear()
        self.app.kill()
        await self._stopped.wait()

    async def abort(self) -> None:
        """End the job for good."""
        self._end(Request.ABORT)
        await self._stopped.wait()

    def start(self) -> None:
        """Start the app whenever it does not run and the job is not over."""
        self._may_start.set()

    def reread(self) -> None:
        """Have the app read again what it was told of the job."""
        self._write_init_data()
        self._control.put("reread_app_info")

    def trickle_down(self, text: str) -> None:
        """Bring the app a message from the project's server."""
        (self._slot.path / f"trickle_down_{int(time.time())}").write_text(text, encoding="utf-8")
        self._memory.send(Channel.TRICKLE_DOWN, "<have_trickle_down/>\n")

    def _end(self, request: Request) -> None:
        assert self.app is not None  # noqa: S101  (only what runs can be ended)
        self.app.asked = request
        self.app.kill_at_s = self._loop.time() + self._pace.kill_after_s
        self._control.put(request.value)
