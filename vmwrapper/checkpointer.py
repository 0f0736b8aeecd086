"""Takes the checkpoints of the task whose program runs: when one is due, and how it becomes the one that counts."""

import asyncio
import logging
import math
import random
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from vmwrapper.boinc.api import AppApi
from vmwrapper.checkpoint import Checkpoint, Record, write_record
from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import HostDiskFailed, SnapshotFailed, SnapshotUnusable
from vmwrapper.hypervisor.interface import MIB, Machine
from vmwrapper.job.model import Task
from vmwrapper.limits import FULL_DISK, disk_use_bytes
from vmwrapper.progress import Progress
from vmwrapper.run_state import Reason, RunState
from vmwrapper.turns import turn

log = logging.getLogger(__name__)

MOST_OF_RUNNING_TIME = 0.02
"""What checkpoints may take; more expensive ones are taken more seldom."""
LAST_LIMIT_S = 25.0
"""For the one at the end of an episode: the next one waits 35 s for our end, the client 60."""
_GENERATIONS = 2
_FREE_BYTES = 64 * MIB
"""Left to others."""


def enough_bytes(task: Task) -> int:
    """What a task and its checkpoints may take of the disk, without its outputs and what is written to its image.

    While a snapshot is taken there are two others, and what the guest writes to its disk may be in three layers.
    """
    if task.self_running:  # it has that in a folder, which no snapshot keeps
        return ((_GENERATIONS + 1) * task.memory_mib + task.scratch_mib) * MIB
    return (_GENERATIONS + 1) * (task.memory_mib + task.scratch_mib) * MIB


class Checkpointer:
    """Of one task in its machine."""

    def __init__(  # noqa: PLR0913  (each of another kind)
        self,
        machine: Machine,
        task: Task,
        *,
        backend: str,
        api: AppApi,
        run_state: RunState,
        progress: Progress,
        outputs: Collection[Path],
        offset: Callable[[], float] = random.random,
    ) -> None:
        """`backend` is the hypervisor's name; `outputs` count, too, against the disk's bound; `offset` is 0 to 1."""
        self._machine = machine
        self._task = task
        self._backend = backend
        self._api = api
        self._run_state = run_state
        self._progress = progress
        self._outputs = outputs
        self._offset = offset
        self._one_at_a_time = asyncio.Lock()
        self._program_runs = False
        self._taken = 0
        self._cost_s = 0.0
        self._complained = False
        self._stood_s = 0.0
        self._reached_last = progress.reached()
        self._reached = {one.snapshot.number: one.reached for one in progress.checkpoints}

    async def take_when_due(self) -> NoReturn:
        """Take them while the program runs, beside which this is to be awaited."""
        self._program_runs = True
        try:
            # In the second half of the interval, so that jobs that were started together don't write together.
            await self._run_state.clock.sleep(self._interval_s() * (1 + self._offset()) / 2)
            while True:
                if self._task.snapshots:
                    async with self._one_at_a_time:
                        await self._take_or_complain(is_last=False)
                await self._run_state.clock.sleep(self._interval_s())
        finally:
            self._program_runs = False

    def _interval_s(self) -> float:
        return max(
            self._api.init_data.checkpoint_period_s,
            self._task.checkpoint_interval_s,
            self._cost_s / MOST_OF_RUNNING_TIME,
        )

    async def take_last(self) -> None:
        """Take one since the episode ends, if a program runs and it doesn't take long. The guest stands from now on."""
        if not self._program_runs or self._is_safe():
            return
        taken = self._taken
        self._run_state.hold(Reason.LEAVING)
        try:
            async with asyncio.timeout(LAST_LIMIT_S), self._one_at_a_time:
                if self._taken == taken:
                    await self._take_or_complain(is_last=True)
                    self._api.report(self._progress.status())  # while the guest stands nobody else does
        except TimeoutError:
            log.warning("No checkpoint: it was not done within %.0f s", LAST_LIMIT_S)

    def _is_safe(self) -> bool:
        """Whether the guest has not run since the last one."""
        newest = self._progress.checkpoints[:1]
        return bool(newest) and newest[0].reached.elapsed_s >= self._progress.elapsed_s

    async def _take_or_complain(self, *, is_last: bool) -> None:
        """Say what is in the way of it, but only the first time in a row."""
        try:
            await self._take(is_last=is_last)
            self._complained = False
        except (SnapshotFailed, HostDiskFailed) as error:
            if not self._complained:
                self._complained = True
                log.warning("No checkpoint: %s", error)

    async def _take(self, *, is_last: bool) -> None:
        async with turn(self._api.project_dir or self._api.slot):
            if not is_last:
                await self._run_state.may_run()  # our turn may have come while the job was suspended
            if len(self._machine.snapshots) > _GENERATIONS:  # the record could not be written
                await self.count(self._checkpoints()[:_GENERATIONS])
            began_s = asyncio.get_running_loop().time()
            self._stood_s = 0.0
            try:
                most_bytes = await self._room_bytes()
                await self._machine.take_snapshot(self._standing, most_bytes=most_bytes)
                self._reached[self._machine.snapshots[0].number] = self._reached_last
                newest, *older = self._checkpoints()
                await self.count([newest, *older][:_GENERATIONS])
                if not is_last:
                    await self._verify(newest, older)
            finally:
                self._cost_s = asyncio.get_running_loop().time() - began_s
        self._taken += 1
        log.info("Checkpoint taken in %.1f s; the guest stood still for %.3f s", self._cost_s, self._stood_s)

    @contextmanager
    def _standing(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with self._run_state.held(Reason.CHECKPOINT):
            self._reached_last = self._progress.reached()
            yield
        self._stood_s += loop.time() - began_s

    def _checkpoints(self) -> list[Checkpoint]:
        """Of all snapshots that there are, newest first."""
        return [
            Checkpoint(reached=self._reached[snapshot.number], snapshot=snapshot, backend=self._backend)
            for snapshot in self._machine.snapshots
            if snapshot.number in self._reached
        ]

    async def count(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Let these be what the next episode goes on from, and then delete all others."""
        await to_thread_and_back(self._write, self._progress.record_of(checkpoints))
        await self._machine.keep_snapshots([one.snapshot.number for one in checkpoints])

    def _write(self, record: Record) -> None:
        write_record(self._api.slot, record)
        self._progress.checkpointed(record)  # also where somebody cancels us just now

    async def drop_oldest(self) -> bool:
        """Make room on the disk by having one checkpoint less; whether there was one."""
        async with self._one_at_a_time:
            checkpoints = self._checkpoints()
            if checkpoints:
                log.warning("A checkpoint is deleted: the job's files have hardly any room left by rsc_disk_bound")
                await self.count(checkpoints[:-1])
            return bool(checkpoints)

    async def _verify(self, newest: Checkpoint, older: Sequence[Checkpoint]) -> None:
        try:
            await self._machine.verify_snapshot(newest.snapshot.number)
        except SnapshotUnusable as error:
            await self.count(older[: _GENERATIONS - 1])
            raise SnapshotFailed(str(error)) from error

    async def _room_bytes(self) -> int:
        """How large a snapshot may become. Raises SnapshotFailed where that is not enough."""
        room_bytes, complaint = await asyncio.to_thread(self._look_for_room)
        if complaint and len(self._progress.checkpoints) == _GENERATIONS:
            await self.count(self._checkpoints()[: _GENERATIONS - 1])
            room_bytes, complaint = await asyncio.to_thread(self._look_for_room)
        if complaint:
            raise SnapshotFailed(complaint)
        return room_bytes

    def _look_for_room(self) -> tuple[int, str]:
        room = self._machine.room_for_snapshot()
        needed_bytes = room.state_bytes + room.disks_bytes
        free_bytes = shutil.disk_usage(self._api.slot).free - _FREE_BYTES
        if needed_bytes > free_bytes:
            return 0, (
                f"it may need {needed_bytes // MIB} MiB, and the disk has {max(free_bytes, 0) // MIB} MiB for it"
            )
        bound_bytes = int(self._api.init_data.rsc_disk_bound_bytes)
        if not bound_bytes:
            return free_bytes - room.disks_bytes, ""
        used_bytes = disk_use_bytes(self._api.slot, self._outputs)
        left_bytes = int(bound_bytes * FULL_DISK) - used_bytes
        if needed_bytes > left_bytes:
            enough_bytes = math.ceil((used_bytes + needed_bytes) / FULL_DISK)
            return 0, (
                f"it may need {needed_bytes // MIB} MiB beside the {used_bytes // MIB} MiB of the job's files, whose "
                f"workunit allows {bound_bytes // MIB} MiB: raise rsc_disk_bound to {enough_bytes} or more"
            )
        return min(free_bytes, left_bytes) - room.disks_bytes, ""
