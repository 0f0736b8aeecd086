"""The file by which a self-running guest shows that it lives.

Source: BOINC's samples/vboxwrapper/vboxwrapper.cpp.
"""

import asyncio
from typing import NoReturn

from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import GuestError, HeartbeatFileMissing, HeartbeatLost, SnapshotUnusable
from vmwrapper.hostile import one_line
from vmwrapper.job.model import SelfRunning
from vmwrapper.run_state import RunState
from vmwrapper.shared_folder import SharedFolder, Stamp

_LOOKS = 3
"""In each interval."""


class GuestHeartbeat:
    """Any change of the file is a sign of life: the guest's clock may be anything, and late after a checkpoint."""

    def __init__(self, wants: SelfRunning, shared: SharedFolder, run_state: RunState) -> None:
        self._name = wants.heartbeat_file or ""
        self._interval_s = wants.heartbeat_interval_s
        self._shared = shared
        self._run_state = run_state
        self._first: Stamp | None = None
        self._is_reverted = False

    async def begin(self, *, is_reverted: bool) -> None:
        """The guest is about to boot, or to go on. Raises HostDiskFailed."""
        self._is_reverted = is_reverted
        self._first = await to_thread_and_back(self._shared.stamp, self._name) if is_reverted else None

    def has_beaten(self) -> bool:
        """Whether it has shown that it lives, since then, as of now. Raises HostDiskFailed."""
        return self._shared.stamp(self._name) not in (None, self._first)

    async def watch(self) -> NoReturn:
        """Raise HeartbeatLost or HeartbeatFileMissing: the latter also at once, but before the guest has made one.

        Raises SnapshotUnusable for one that has gone back to one and given no sign since.
        """
        last, silent, has_beaten = self._first, 0, False
        while True:
            await self._run_state.clock.sleep(self._interval_s / _LOOKS)
            await self._run_state.may_run()
            now = await asyncio.to_thread(self._shared.stamp, self._name)
            has_beaten = has_beaten or now not in (None, self._first)
            silent = silent + 1 if now == last else 0
            try:
                self._judge(is_there=now is not None, was_there=last is not None, is_over=silent >= _LOOKS)
            except GuestError as error:
                if self._is_reverted and not has_beaten:
                    raise SnapshotUnusable(f"{error} since then") from error
                raise
            last = now

    def _judge(self, *, is_there: bool, was_there: bool, is_over: bool) -> None:
        name = one_line(self._name)
        if not is_there and (was_there or is_over):
            raise HeartbeatFileMissing(f"the guest has no heartbeat file {name} in its shared folder")
        if is_over:
            raise HeartbeatLost(f"the guest has not changed its heartbeat file {name} for {self._interval_s:g} s")
