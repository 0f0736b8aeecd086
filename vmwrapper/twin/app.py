"""The app as the client runs it: a process in the slot, what it says, and what it starts."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from vmwrapper.boinc.api import Request
from vmwrapper.errors import ProcessFailed
from vmwrapper.process import command_line
from vmwrapper.twin.slot import STDERR_FILE

_OUTLIVES_S = 1.0
_LOOK_S = 0.05


Asked = Request | None
"""The quit or abort that an app was told, if any."""


class App:
    """A process that runs, and all that it has started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._family: set[psutil.Process] = set()
        self.pid = process.pid
        self.asked: Asked = None
        self.kill_at_s: float | None = None
        """When that is enforced, on the event loop's clock."""

    def look(self) -> int:
        """Find out what it has started by now, and how much memory all of them have in RAM, in bytes."""
        with suppress(psutil.Error):
            main = psutil.Process(self.pid)
            self._family.update(main.children(recursive=True))
            return sum(_memory_bytes(process) for process in (main, *self._family))
        return 0

    def kill(self) -> None:
        """End it, as kill -9 does; not what it has started."""
        self.look()
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        return await self._process.wait()

    async def end_family(self) -> list[str]:
        """End what it has left running a second after its own end, and name it."""
        for _ in range(round(_OUTLIVES_S / _LOOK_S)):
            if not any(map(_lives, self._family)):
                break
            await asyncio.sleep(_LOOK_S)
        names = []
        for process in filter(_lives, self._family):
            with suppress(psutil.NoSuchProcess):
                names.append(f"{process.name()} (pid {process.pid})")
                process.kill()
        return names


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _memory_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def app_command(options: Sequence[str]) -> list[str]:
    """How to start ourselves as an app. -P, since the slot has files of any name, also of Python's modules."""
    if getattr(sys, "frozen", False):
        return [sys.executable, *options]
    return [sys.executable, "-P", "-m", "vmwrapper", *options]


@asynccontextmanager
async def running_app(command: Sequence[str], slot: Path) -> AsyncIterator[App]:
    """Start the app in its slot; at the end of the block it is killed unless it has ended.

    It is not started by the gateway of `process`, which gives a wrapper's helpers another environment, and kills them
    when their parent dies: apps outlive their client. It has a process group of its own, so that Ctrl-C is for us only.
    Source: BOINC's client/app_start.cpp, ACTIVE_TASK::start.
    """
    with (slot / STDERR_FILE).open("ab") as said:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=slot,
                env=os.environ | {"LD_LIBRARY_PATH": "..:."},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                process_group=0,
            )
        except OSError as error:
            raise ProcessFailed(f"can't start {command_line(command)}: {error.strerror}") from error
    app = App(process)
    try:
        yield app
    finally:
        if process.returncode is None:
            app.kill()
            await process.wait()


class AppLog:
    """What the app says, over all its starts."""

    def __init__(self, slot: Path) -> None:
        self._path = slot / STDERR_FILE
        self._position = 0
        self._unfinished = b""
        self._lines: list[str] = []  # of this start
        self._searched = 0

    def begin(self) -> None:
        """The app is started again: look no more at what it said before."""
        self._lines.clear()
        self._searched = 0

    def news(self) -> list[str]:
        """The lines that are new since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []
        self._position += len(content)
        *lines, self._unfinished = (self._unfinished + content).split(b"\n")
        new = [line.decode(errors="replace") for line in lines]
        self._lines += new
        return new

    def find(self, text: str) -> bool:
        """Whether a line of this start has the text in it, behind the one that was found last."""
        for number in range(self._searched, len(self._lines)):
            if text in self._lines[number]:
                self._searched = number + 1
                return True
        return False
