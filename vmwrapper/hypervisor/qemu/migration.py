"""The guest's memory and devices, to and from a file, by QEMU's live migration.

Source: QEMU's docs/devel/migration.rst and qapi/migration.json.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qemu.qmp import EventListener, QMPClient

from vmwrapper.errors import SnapshotFailed
from vmwrapper.hypervisor.interface import Standing

_DOWNTIME_MS = 50
_UNLIMITED = 1 << 40  # bytes a second
_PATIENCE_S = 3.0
"""How long a guest may change its memory faster than that is written, once all of it has been."""
_CANCEL_LIMIT_S = 10.0
_SETTLES_S = 0.001
_FD_NAME = "state"
_ENDED = {"completed", "failed", "cancelled"}


async def save(monitor: QMPClient, fd: int, *, standing: Standing, at_rest: Callable[[], Awaitable[None]]) -> None:
    """Write the state while the guest runs on. It stands still only inside `standing`, and is paused at its end.

    `at_rest` is called there, once the guest writes to no disk any more; the state is of this instant. A descriptor of
    QEMU's own is made of `fd`. Raises SnapshotFailed, QMPError.
    """
    await _prepare(monitor)
    with _states(monitor) as states:
        await _hand_over(monitor, fd)
        await monitor.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
        try:
            is_converged = await states.converge()
            with standing():
                try:
                    if not is_converged:
                        await monitor.execute("stop")
                        await states.reach("pre-switchover")
                    await at_rest()
                    await monitor.execute("migrate-continue", {"state": "pre-switchover"})
                    await states.reach("completed")
                    await _settled(monitor)
                except BaseException:
                    await states.cancel()
                    await monitor.execute("stop")  # QEMU lets it go on
                    raise
        except BaseException:
            await states.cancel()
            raise


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
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED, "downtime-limit": _DOWNTIME_MS})


async def _hand_over(monitor: QMPClient, fd: int) -> None:
    monitor.send_fd_scm(fd)
    await monitor.execute("getfd", {"fdname": _FD_NAME})


class _States:
    """How a migration goes."""

    def __init__(self, monitor: QMPClient, events: EventListener) -> None:
        self._monitor = monitor
        self._events = events
        self._state = "none"

    async def converge(self) -> bool:
        """Wait until the guest stands still, or should be made to, since it does not come to that by itself."""
        try:
            async with asyncio.timeout(None) as patience:
                await self.reach("pre-switchover", patience)
        except TimeoutError:
            return False
        return True

    async def reach(self, state: str, patience: asyncio.Timeout | None = None) -> None:
        """Raises SnapshotFailed where it ends otherwise. `patience` begins when all memory has been written once."""
        while self._state != state:
            if self._state in _ENDED:
                raise SnapshotFailed(f"the guest's memory can't be saved: {await self._complaint()}")
            match await self._events.get():
                case {"event": "MIGRATION", "data": {"status": str(said)}}:
                    self._state = said
                case {"event": "MIGRATION_PASS", "data": {"pass": 2}} if patience:
                    patience.reschedule(asyncio.get_running_loop().time() + _PATIENCE_S)

    async def _complaint(self) -> str:
        said = await self._monitor.execute("query-migrate")
        return str(said.get("error-desc", self._state)) if isinstance(said, dict) else self._state

    async def cancel(self) -> None:
        """Have it over, whatever it did. Raises QMPError, TimeoutError."""
        async with asyncio.timeout(_CANCEL_LIMIT_S):
            if self._state not in _ENDED:
                await self._monitor.execute("migrate_cancel")
            while self._state not in _ENDED:
                match await self._events.get():
                    case {"event": "MIGRATION", "data": {"status": str(said)}}:
                        self._state = said


@contextmanager
def _states(monitor: QMPClient) -> Iterator[_States]:
    with monitor.listener(("MIGRATION", "MIGRATION_PASS")) as events:
        yield _States(monitor, events)
