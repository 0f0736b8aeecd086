"""The guest's memory and devices, to and from a file, by QEMU's live migration.

Where QEMU emulates the processor, it can miss what a guest writes while it looks up which memory has been written to:
always before 9.0 (its commit 03bfc2188f), and in rare moments since. So it never looks while the guest runs: the guest
is stopped for the first look, when QEMU also begins to take notes, and again when most of its memory has been written,
for the second look and the rest.

Source: QEMU's docs/devel/migration.rst and qapi/migration.json; migration/ram.c, softmmu/physmem.c.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from vmwrapper.errors import SnapshotFailed
from vmwrapper.hypervisor.interface import MIB, Standing

_PACE = 1280 * MIB
"""Bytes a second: so that the last of them are noticed in time."""
_NEAR_BYTES = 1024 * MIB
_SLOWLY_BYTES = 256 * MIB
_SLOW_PACE = 400 * MIB
"""For these. QEMU writes a tenth of it at once, and rests until a tenth of a second is over, whatever it is told."""
_RESTS_S = 0.06
_LAST_BYTES = 48 * MIB
_FEW_BYTES = 272 * MIB
"""That are written in a tenth of a second: the guest needs not go on meanwhile."""
_UNLIMITED = 1 << 40
_DOWNTIME_MS = 50
_LOOK_S = 0.005
_CANCEL_LIMIT_S = 10.0
_CANCEL_LOOK_S = 0.2
_SETTLES_S = 0.001
_FD_NAME = "state"
_ENDED = {"completed", "failed", "cancelled"}


def most_bytes(memory_bytes: int) -> int:
    """How large the state of so much memory may become: what is changed while it is written is written twice."""
    return memory_bytes if memory_bytes <= _FEW_BYTES else 2 * memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What others do while a state is saved."""

    standing: Standing
    """Makes the block inside which the guest stands, and at whose end it is paused."""
    near: Callable[[], None]
    """Called when it will soon stand for the last time."""
    at_rest: Callable[[], Awaitable[None]]
    """Called that time, once the guest writes to no disk any more: the state is of this instant."""


async def save(monitor: QMPClient, file: BinaryIO, moments: Moments) -> None:
    """Write the state into an empty file. Raises SnapshotFailed, QMPError."""
    await _prepare(monitor)
    if not await _save(monitor, file, moments, live=True):
        file.truncate(0)
        file.seek(0)
        await _save(monitor, file, moments, live=False)


async def _save(monitor: QMPClient, file: BinaryIO, moments: Moments, *, live: bool) -> bool:
    """Whether the guest was stopped in time, before QEMU looked a second time."""
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _PACE})
    with _states(monitor) as states:
        await _hand_over(monitor, file.fileno())
        async with _stopped(monitor, states, moments.standing):
            await states.begin()
            await states.reach("active")
            if not live or await states.left_bytes() <= _FEW_BYTES:
                await monitor.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
                await _finish(monitor, states, moments.at_rest)
                return True
        await states.mostly_written(moments.near)
        async with _stopped(monitor, states, moments.standing):
            await monitor.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
            if states.missed_nothing():
                await _finish(monitor, states, moments.at_rest)
                return True
            await states.cancel()
    return False


@asynccontextmanager
async def _stopped(monitor: QMPClient, states: "_States", standing: Standing) -> AsyncIterator[None]:
    with standing():
        await monitor.execute("stop")
        try:
            yield
        except asyncio.CancelledError:
            with suppress(QMPError, TimeoutError):  # the machine is about to end
                await states.cancel()
                await _stop(monitor)
            raise
        except Exception:
            await states.cancel()
            await _stop(monitor)
            raise


async def _stop(monitor: QMPClient) -> None:
    """Have the guest stand, which QEMU may have let go on when it was told to cancel."""
    async with asyncio.timeout(_CANCEL_LIMIT_S):
        await monitor.execute("stop")


async def _finish(monitor: QMPClient, states: "_States", at_rest: Callable[[], Awaitable[None]]) -> None:
    await states.reach("pre-switchover")
    await at_rest()
    await monitor.execute("migrate-continue", {"state": "pre-switchover"})
    await states.reach("completed")
    await _settled(monitor)


async def load(monitor: QMPClient, fd: int) -> None:
    """Read the state into a QEMU that was started to wait for one. It may end instead, which others must watch."""
    await _prepare(monitor)
    with _states(monitor) as states:
        await _hand_over(monitor, fd)
        await monitor.execute("migrate-incoming", {"uri": f"fd:{_FD_NAME}"})
        await states.reach("completed")


async def _settled(monitor: QMPClient) -> None:
    """Wait until the guest may be let go on, which is a moment after QEMU calls it completed."""
    while await _status(monitor) == "finish-migrate":  # noqa: ASYNC110  (no event tells it)
        await asyncio.sleep(_SETTLES_S)


async def _status(monitor: QMPClient) -> str:
    said: Any = await monitor.execute("query-status")
    return str(said["status"])


async def _prepare(monitor: QMPClient) -> None:
    wanted = [{"capability": name, "state": True} for name in ("events", "pause-before-switchover")]
    await monitor.execute("migrate-set-capabilities", {"capabilities": wanted})
    await monitor.execute("migrate-set-parameters", {"downtime-limit": _DOWNTIME_MS})


async def _hand_over(monitor: QMPClient, fd: int) -> None:
    monitor.send_fd_scm(fd)
    await monitor.execute("getfd", {"fdname": _FD_NAME})


class _States:
    """How a migration goes."""

    def __init__(self, monitor: QMPClient, events: EventListener) -> None:
        self._monitor = monitor
        self._events = events
        self._state = "none"
        self._looks = 0

    async def begin(self) -> None:
        """From here on it may go on, whether or not we hear of it."""
        self._state = "begun"
        try:
            await self._monitor.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
        except ExecuteError:
            self._state = "none"
            raise

    async def reach(self, state: str) -> None:
        """Raises SnapshotFailed where it ends otherwise."""
        while self._state != state:
            if self._state in _ENDED:
                raise SnapshotFailed(f"the guest's memory can't be saved: {await self._complaint()}")
            self._take(await self._events.get())

    async def mostly_written(self, near: Callable[[], None]) -> None:
        """Wait until little is left to write and QEMU is about to do that, or until nothing more will be written."""
        try:
            while await self.left_bytes() > _NEAR_BYTES:  # noqa: ASYNC110  (no event tells it)
                await asyncio.sleep(_LOOK_S)
            near()
            while await self.left_bytes() > _SLOWLY_BYTES:  # noqa: ASYNC110  (the same)
                await asyncio.sleep(_LOOK_S)
            await self._monitor.execute("migrate-set-parameters", {"max-bandwidth": _SLOW_PACE})
            await self._rest_before_last()
        except asyncio.CancelledError:
            with suppress(QMPError, TimeoutError):
                await self.cancel()
            raise

    async def _rest_before_last(self) -> None:
        """Wait until most of QEMU's rest is over, before it writes the last but one time, or the last time."""
        loop = asyncio.get_running_loop()
        before, wrote_at_s = 0, 0.0
        while (left := await self.left_bytes()) > _LAST_BYTES:
            if left != before:
                before, wrote_at_s = left, loop.time()
            elif left <= _LAST_BYTES + _SLOW_PACE // 10:
                await asyncio.sleep(wrote_at_s + _RESTS_S - loop.time())
                return
            await asyncio.sleep(_LOOK_S)

    async def left_bytes(self) -> int:
        """How much of the guest's memory is still to be written, of what QEMU knows."""
        said: Any = await self._monitor.execute("query-migrate")
        return int(said["ram"]["remaining"]) if said["status"] == "active" else 0

    def missed_nothing(self) -> bool:
        """Whether QEMU has looked only once so far; or has stopped the guest right after the second look."""
        for event in self._events.clear():
            self._take(event)
        return self._looks == 1 or (self._looks == 2 and self._state == "pre-switchover")

    def _take(self, event: Any) -> None:
        match event:
            case {"event": "MIGRATION", "data": {"status": str(said)}}:
                self._state = said
            case {"event": "MIGRATION_PASS", "data": {"pass": int(number)}}:
                self._looks = number

    async def _complaint(self) -> str:
        said = await self._monitor.execute("query-migrate")
        return str(said.get("error-desc", self._state)) if isinstance(said, dict) else self._state

    async def cancel(self) -> None:
        """Have it over, whatever it did. Raises QMPError, TimeoutError."""
        async with asyncio.timeout(_CANCEL_LIMIT_S):
            if self._state == "none":
                return
            if self._state not in _ENDED:
                await self._monitor.execute("migrate_cancel")
            while self._state not in _ENDED:
                try:
                    async with asyncio.timeout(_CANCEL_LOOK_S):
                        self._take(await self._events.get())
                except TimeoutError:
                    # Where it was cancelled just before it came to pre-switchover, it waits there all the same.
                    with suppress(ExecuteError):
                        await self._monitor.execute("migrate-continue", {"state": "cancelling"})
            await _settled(self._monitor)


@contextmanager
def _states(monitor: QMPClient) -> Iterator[_States]:
    with monitor.listener(("MIGRATION", "MIGRATION_PASS")) as events:
        yield _States(monitor, events)
