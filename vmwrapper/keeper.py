"""Lets a person look into the machines of a job, and keeps the last one until that person has seen enough.

No machine outlives its wrapper: so keeping one is not ending.
"""

import asyncio
import logging
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from vmwrapper.concurrency import beside
from vmwrapper.errors import (
    GuestPanicked,
    GuestPoweredOff,
    HostDiskFailed,
    MachineExited,
    SnapshotUnusable,
    VmwrapperError,
)
from vmwrapper.hypervisor.interface import Machine
from vmwrapper.job.model import Task
from vmwrapper.progress import Progress
from vmwrapper.shell.server import ShellServer

log = logging.getLogger(__name__)

CONSOLE_FILE = "console.txt"
_KEPT = """\
The machine of %s is kept.
  %s
  The end of its console, so far: %s
  Its disks are beside that.
  Ctrl-C here, or kill %d, removes all of it."""
_GUEST_IS_GONE = (GuestPanicked, GuestPoweredOff, MachineExited, HostDiskFailed)


class Keeper:
    """Keeps the machine in which a job ended."""

    def __init__(self) -> None:
        self._keeping = False
        self._enough = asyncio.Event()

    def let_go(self) -> bool:
        """Let a kept machine go; whether there was one."""
        self._enough.set()
        return self._keeping

    @asynccontextmanager
    async def kept(
        self, task: Task, machine: Machine, folder: Path, progress: Progress, *, is_last: bool
    ) -> AsyncIterator[None]:
        """Let people into a machine that is on, beside the block; then wait for `let_go` where the job ends.

        It ends by an error, which comes out after that as it was, and after its last task. `folder` is the machine's.
        """
        server = ShellServer(machine.guest, folder, home=task.datadir)

        async def keep() -> None:
            self._keeping = True
            progress.activity = "kept"
            _keep_console(machine, folder)
            log.info(_KEPT, task.innerjob, _ways_in(folder, server), folder / CONSOLE_FILE, os.getpid())
            try:
                async with beside(*([] if server.refusal else [machine.watch()])):
                    await self._enough.wait()
            except VmwrapperError as error:
                log.warning("The kept machine ended by itself: %s", error)

        async with beside(server.answer()):
            try:
                yield
            except SnapshotUnusable:
                raise  # the job does not end here
            except VmwrapperError as error:
                log.error("%s", error)  # noqa: TRY400  (its traceback comes out with it)
                if isinstance(error, _GUEST_IS_GONE):
                    server.refusal = f"there is no guest any more: {error}"
                await keep()
                raise
            if is_last:
                await keep()


def _keep_console(machine: Machine, folder: Path) -> None:
    try:
        (folder / CONSOLE_FILE).write_text(machine.console_tail + "\n", encoding="utf-8")
    except OSError as error:
        log.warning("can't write the console's end into %s: %s", folder, error.strerror)


def _ways_in(folder: Path, server: ShellServer) -> str:
    if server.refusal:
        return "The guest is gone: only its console and its disks are left"
    return f"Look into it from another terminal: vmwrapper shell {shlex.quote(str(folder.parent))}"
