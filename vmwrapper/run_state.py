"""Why the guest stands still, and the one owner of stop and go."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import NoReturn

from vmwrapper.clock import RunningClock
from vmwrapper.hypervisor.interface import Machine

log = logging.getLogger(__name__)


class Reason(Enum):
    """A reason for the guest to stand still."""

    SUSPENDED = "suspended by the client"
    CHECKPOINT = "checkpoint in progress"
    LEAVING = "the episode ends"
    HOST_LIMIT = "a limit of the host"
    USER = "paused by the user"


class RunState:
    """The guest runs if and only if there is no reason for it to stand still.

    Anyone holds and releases reasons; only `drive` pauses and resumes the machine, one verb at a time, until it is as
    the reasons want it. So nobody wakes a guest that another has put to sleep. The clock stands still with it.
    """

    def __init__(self, clock: RunningClock) -> None:
        self.clock = clock
        self._reasons: set[Reason] = set()
        self._changed = asyncio.Event()
        self._may_run = asyncio.Event()
        self._may_run.set()

    @property
    def reasons(self) -> frozenset[Reason]:
        return frozenset(self._reasons)

    def hold(self, reason: Reason) -> None:
        """Let the guest stand still. Holding what is held does nothing."""
        self._reasons.add(reason)
        self.clock.stop()
        self._may_run.clear()
        self._changed.set()

    def release(self, reason: Reason) -> None:
        """Take a reason back. Releasing what is not held does nothing."""
        self._reasons.discard(reason)
        if not self._reasons:
            self.clock.go()
            self._may_run.set()
        self._changed.set()

    @contextmanager
    def held(self, reason: Reason) -> Iterator[None]:
        """Hold a reason for the length of the block; nobody else may hold the same."""
        self.hold(reason)
        try:
            yield
        finally:
            self.release(reason)

    async def may_run(self) -> None:
        """Wait until there is no reason to stand still."""
        await self._may_run.wait()

    async def drive(self, machine: Machine, *, running: bool = True) -> NoReturn:
        """Pause and resume a machine that is powered on, as long as it is. To be awaited beside its work.

        `running` is whether it runs at first.
        """
        while True:
            self._changed.clear()
            if running != self._may_run.is_set():
                running = not running
                await (machine.resume() if running else machine.pause())
            else:
                await self._changed.wait()
