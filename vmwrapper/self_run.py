"""One task whose guest works by itself: it boots, works and ends, and speaks by files in a folder that it shares."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vmwrapper.checkpoint import Checkpoint
from vmwrapper.checkpointer import Checkpointer
from vmwrapper.clock import next_second
from vmwrapper.concurrency import beside, to_thread_and_back
from vmwrapper.delivery import deliver
from vmwrapper.errors import (
    DiskLimitExceeded,
    GuestPoweredOff,
    PostponedByGuest,
    ProgramFailed,
    SelfRunCutShort,
    SelfRunFailed,
)
from vmwrapper.guest import reports
from vmwrapper.guest.reports import Trigger
from vmwrapper.guest_heartbeat import GuestHeartbeat
from vmwrapper.hostile import one_line, some_of
from vmwrapper.hypervisor.interface import MIB, Machine
from vmwrapper.job.model import SelfRunning
from vmwrapper.job.resolve import ResolvedTask
from vmwrapper.limits import time_limit
from vmwrapper.machine_run import MachineRun
from vmwrapper.progress import Progress
from vmwrapper.run_state import RunState
from vmwrapper.shared_folder import SharedFolder
from vmwrapper.trigger_file import TriggerFile

log = logging.getLogger(__name__)

_DISK_LOOK_S = 10.0
_SHORTEST_DELAY_S, _LONGEST_DELAY_S, _DEFAULT_DELAY_S = 15, 86_400, 300
_EIGHT_BITS = 0xFF
"""Of its exit status a process has so many."""
_JUST_BEGUN = 0.001
"""The fraction done of a guest that will tell it: of 0 the client would make an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """At one look into the folder."""

    completion: Trigger | None
    temporary_exit: Trigger | None
    fraction: float | None
    lives: bool


def shared_folder(resolved: ResolvedTask, directory: Path) -> SharedFolder:
    """Where a self-running guest's is: in its machine's directory, so that it goes and stays as that does."""
    return SharedFolder(directory / "shared", limit_bytes=resolved.task.scratch_mib * MIB)


class SelfRun:
    """The run of one such task in a machine of its own, which is powered off before and after."""

    def __init__(  # noqa: PLR0913  (each of another kind)
        self,
        resolved: ResolvedTask,
        wants: SelfRunning,
        machine: Machine,
        checkpointer: Checkpointer | None,
        *,
        shared: SharedFolder,
        slot: Path,
        run_state: RunState,
        progress: Progress,
        boot_limit_s: float,
        notify: Callable[[str], None],
    ) -> None:
        """`boot_limit_s` is running time in which no checkpoint is taken of a guest that has not shown that it lives.

        `notify` gets what the volunteer is to be shown.
        """
        self._resolved = resolved
        self._task = resolved.task
        self._wants = wants
        self._machine = machine
        self._checkpointer = checkpointer
        self._shared = shared
        self._slot = slot
        self._run_state = run_state
        self._progress = progress
        self._boot_limit_s = boot_limit_s
        self._notify = notify
        self._completion = TriggerFile(shared, wants.completion_file, run_state.clock)
        self._temporary_exit = TriggerFile(shared, wants.temporary_exit_file, run_state.clock)
        self._given: set[str] = set()
        """What is in the folder before the boot."""
        self._heartbeat = GuestHeartbeat(wants, shared, run_state) if wants.heartbeat_file else None
        self._lives = asyncio.Event()
        """It has shown that, since it was booted or went back."""
        self._said: Trigger | None = None
        """By its completion file."""

    async def run(self) -> None:
        """From the inputs in the shared folder to the outputs in their places. Raises what ended the task otherwise.

        It goes on from the newest checkpoint that is good for it.
        """
        machine_run = MachineRun(
            self._machine,
            reverts=self._checkpointer is not None,
            run_state=self._run_state,
            progress=self._progress,
        )
        await machine_run.run(self._while_on, prepare=self._copy_in)
        self._judge()
        await self._copy_out()

    async def _copy_in(self) -> None:
        for name in some_of(self._resolved.inputs):
            self._enter("copying in", "Copying in input %s", name)
        await self._shared.fill(self._resolved.inputs)
        self._given = self._shared.names()

    async def _while_on(self, checkpoint: Checkpoint | None) -> None:
        self._lives.clear()
        if self._heartbeat:
            await self._heartbeat.begin(is_reverted=checkpoint is not None)
        if checkpoint:
            await self._go_on(checkpoint)
        else:
            await self._begin()
        try:
            async with beside(self._machine.watch(), *self._beside_guest()):
                await self._follow()
        except GuestPoweredOff as error:
            await self._read_last_words(error)

    async def _begin(self) -> None:
        tells = self._task.fraction_done_filename or self._wants.duration_s
        self._progress.begin_task(estimated=not tells)
        if tells:
            self._progress.fraction_of_task(_JUST_BEGUN)
        if self._checkpointer and self._machine.snapshots:
            await self._checkpointer.count(())
        self._enter("running", "The guest works by itself")

    async def _go_on(self, checkpoint: Checkpoint) -> None:
        for trigger in (self._completion, self._temporary_exit):
            await to_thread_and_back(trigger.remove)  # the guest does not know any more that it has written it
        if not self._heartbeat:
            self._lives.set()
        self._enter("running", "The guest goes on by itself")
        if self._checkpointer:
            known = [one for one in self._progress.checkpoints if one.snapshot.number <= checkpoint.snapshot.number]
            await self._checkpointer.count(known)

    def _enter(self, activity: str, text: str, *arguments: str) -> None:
        self._progress.activity = activity
        log.info(text, *map(one_line, arguments))

    def _beside_guest(self) -> Iterator[Coroutine[None, None, NoReturn]]:
        yield self._bound_folder()
        if self._heartbeat:
            yield self._heartbeat.watch()
        if self._checkpointer:
            yield self._take_checkpoints(self._checkpointer)

    async def _take_checkpoints(self, checkpointer: Checkpointer) -> NoReturn:
        """Once the guest has booted, or gone on, as far as that can be told: others may be good for nothing."""
        with suppress(TimeoutError):
            async with self._run_state.clock.timeout(self._boot_limit_s):
                await self._lives.wait()
        await checkpointer.take_when_due()

    async def _bound_folder(self) -> NoReturn:
        while True:
            await self._run_state.may_run()
            used_mib = await asyncio.to_thread(self._shared.used_bytes) / MIB
            if used_mib > self._task.scratch_mib:
                text = f"the guest has {used_mib:.0f} MiB in its shared folder, which may have {self._task.scratch_mib}"
                raise DiskLimitExceeded(f"{text}: raise <disk_mb>")
            await asyncio.sleep(_DISK_LOOK_S)

    async def _follow(self) -> None:
        """Until it is done. Raises PostponedByGuest, TimeLimitExceeded."""
        ran_s, clock = self._progress.program_ran_s, self._run_state.clock
        async with time_limit(self._task.title, self._task.time_limit_s, ran_s=ran_s, clock=clock):
            while not self._has_worked_enough():
                await next_second()
                await self._run_state.may_run()
                seen = await to_thread_and_back(self._look)
                self._tell(seen)
                if seen.completion:
                    self._said = seen.completion
                    return
                if seen.temporary_exit:
                    await self._postpone(seen.temporary_exit)
        log.info("The guest has worked for as long as it was to")

    def _has_worked_enough(self) -> bool:
        return self._wants.duration_s is not None and self._progress.program_ran_s >= self._wants.duration_s

    def _look(self) -> _Seen:
        name = self._task.fraction_done_filename
        end = self._shared.end(name, limit_bytes=reports.FRACTION_DONE_BYTES) if name else None
        return _Seen(
            completion=self._completion.look(),
            temporary_exit=self._temporary_exit.look(),
            fraction=reports.last_number(end.content) if end else None,
            lives=self._lives.is_set() or self._shows_life(),
        )

    def _shows_life(self) -> bool:
        if self._heartbeat:
            return self._heartbeat.has_beaten()
        return not self._shared.names() <= self._given

    def _tell(self, seen: _Seen) -> None:
        if seen.lives:
            self._lives.set()
        if self._wants.duration_s:
            self._progress.fraction_of_task(self._progress.program_ran_s / self._wants.duration_s)
        elif seen.fraction is not None:
            self._progress.fraction_of_task(max(seen.fraction, 0.0))

    async def _postpone(self, wanted: Trigger) -> NoReturn:
        """Have what is done so far in a checkpoint, from which the guest will find that it may go on."""
        await to_thread_and_back(self._temporary_exit.remove)
        if self._checkpointer:
            await self._checkpointer.take_last()
        raise _postponed(wanted)

    async def _read_last_words(self, error: GuestPoweredOff) -> None:
        """What it said just before it powered off. Raises SelfRunCutShort where that is not the end."""
        self._said = await to_thread_and_back(self._completion.last)
        if self._said or self._has_worked_enough():
            return
        if wanted := await to_thread_and_back(self._temporary_exit.last):
            raise _postponed(wanted) from error
        raise SelfRunCutShort(f"{error}, as far as its files in the shared folder tell") from error

    def _judge(self) -> None:
        """Raise SelfRunFailed or ProgramFailed for a guest that says so."""
        said = self._said
        if said is None:
            return
        log.info("The guest is done, and says: %s", "nothing" if said.number is None else f"status {said.number}")
        if said.message:
            log.info("Its message:\n%s", said.message)
        if said.message and said.concerns_volunteer:
            self._notify(said.message)
        status = None if said.number is None else said.number & _EIGHT_BITS
        if said.number and status:
            raise SelfRunFailed(f"{self._task.title} says that it failed, with status {said.number}", status=status)
        if said.number != 0:
            name = one_line(self._wants.completion_file or "")
            raise ProgramFailed(f"{self._task.title} has a {name} whose first line is no exit status")

    async def _copy_out(self) -> None:
        for name in some_of(self._resolved.outputs):
            self._enter("copying out", "Copying out output %s", name)
        place, slot = "its shared folder", self._slot
        await deliver(self._resolved, self._progress, fetch=self._shared.get, place=place, slot=slot)


def _postponed(wanted: Trigger) -> PostponedByGuest:
    delay_s = _DEFAULT_DELAY_S if wanted.number is None else wanted.number
    return PostponedByGuest(
        f"the guest wants to go on later: {wanted.message or 'it does not say why'}",
        delay_s=min(max(delay_s, _SHORTEST_DELAY_S), _LONGEST_DELAY_S),
        concerns_volunteer=wanted.concerns_volunteer,
    )
