"""One task in its machine: prepare, copy in, run, follow, copy out."""

import asyncio
import logging
import posixpath
import secrets
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from vmwrapper.checkpoint import Checkpoint
from vmwrapper.checkpointer import Checkpointer
from vmwrapper.clock import next_second
from vmwrapper.concurrency import beside
from vmwrapper.delivery import deliver
from vmwrapper.errors import (
    GuestError,
    GuestSilent,
    JobError,
    ProgramFailed,
    SnapshotUnusable,
    VmwrapperError,
)
from vmwrapper.guest import reports
from vmwrapper.guest.launcher import PACKAGES, Launcher, Program, ProgramEnd
from vmwrapper.guest.reseed import SEED_BYTES
from vmwrapper.hostile import one_line, some_of
from vmwrapper.hypervisor.interface import MIB, Machine
from vmwrapper.job.model import CpuTimeBasis, PackageKind, package_kind
from vmwrapper.job.resolve import ResolvedTask
from vmwrapper.limits import time_limit
from vmwrapper.machine_run import Kept, MachineRun
from vmwrapper.progress import Progress
from vmwrapper.run_state import RunState

log = logging.getLogger(__name__)

_FIRST_LOOK_S = 0.05
_LOOKS_GROW_BY = 1.5
_LOOKS_PER_SIGN_OF_LIFE = 30
_LOOKS_PER_REPORT = 3


class TaskRun:
    """The run of one task in a machine of its own, which is powered off before and after."""

    def __init__(  # noqa: PLR0913  (each of another kind)
        self,
        resolved: ResolvedTask,
        machine: Machine,
        checkpointer: Checkpointer | None,
        *,
        slot: Path,
        run_state: RunState,
        progress: Progress,
        boot_limit_s: float,
    ) -> None:
        """`boot_limit_s` is running time from power-on until the guest takes commands."""
        self._resolved = resolved
        self._task = resolved.task
        self._machine = machine
        self._checkpointer = checkpointer
        self._slot = slot
        self._run_state = run_state
        self._progress = progress
        self._boot_limit_s = boot_limit_s

    async def run(self, *, kept: Kept | None = None) -> None:
        """From power-on to the outputs in their places, and that written down. Raises what ended the task otherwise.

        It goes on from the newest checkpoint that is good for it. `kept` makes what is around all that happens while
        the machine is on; what is kept is not sanitized.
        """
        machine_run = MachineRun(
            self._machine,
            reverts=self._checkpointer is not None,
            run_state=self._run_state,
            progress=self._progress,
        )
        await machine_run.run(partial(self._while_on, sanitizes=kept is None), kept=kept)

    async def _while_on(self, checkpoint: Checkpoint | None, *, sanitizes: bool) -> None:
        launcher = Launcher(self._machine.guest, datadir=self._task.datadir, user=self._task.user)
        async with beside(self._machine.watch()):
            await self._in_guest(launcher, checkpoint)
        if sanitizes:
            await self._sanitize(launcher)

    async def _in_guest(self, launcher: Launcher, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            await self._reattach(launcher, checkpoint)
        else:
            await self._start(launcher)
        async with beside(*self._beside_program()):
            end = await self._follow(launcher)
        await self._hear()
        if operations := self._progress.status().operations:
            log.info(
                "The program reports %.9g floating-point and %.9g integer operations",
                operations.floating_point,
                operations.integer,
            )
        await self._judge(end, launcher)
        await self._copy_out()

    async def _start(self, launcher: Launcher) -> None:
        await self._machine.guest.ready(limit_s=self._boot_limit_s)
        facts = await launcher.prepare(scratch=self._task.scratch_mib > 0)
        log.info("Guest is ready, preparing the job: boot id %s, kernel %s", facts.boot_id, facts.kernel)
        await self._install(launcher)
        await self._copy_in()
        await launcher.start(self._program())
        self._progress.begin_task(estimated=self._task.fraction_done_filename is None)
        if self._checkpointer and self._machine.snapshots:
            await self._checkpointer.count(())
        self._enter("running", "Running the program: %s", self._task.innerjob)

    async def _reattach(self, launcher: Launcher, checkpoint: Checkpoint) -> None:
        try:
            await self._machine.guest.ready(limit_s=self._boot_limit_s)
        except GuestSilent as error:
            raise SnapshotUnusable(str(error)) from error
        await launcher.wake(time.time(), secrets.token_bytes(SEED_BYTES))
        self._enter("running", "Going on with the program: %s", self._task.innerjob)
        if self._checkpointer:
            known = [one for one in self._progress.checkpoints if one.snapshot.number <= checkpoint.snapshot.number]
            await self._checkpointer.count(known)

    def _beside_program(self) -> Iterator[Coroutine[None, None, NoReturn]]:
        yield self._hear_often()
        if self._checkpointer:
            yield self._checkpointer.take_when_due()

    def _enter(self, activity: str, text: str, *arguments: str) -> None:
        self._progress.activity = activity
        log.info(text, *map(one_line, arguments))

    async def _install(self, launcher: Launcher) -> None:
        packages = self._resolved.packages
        if not packages:
            return
        for name in some_of(packages):
            self._enter("installing", "Installing package %s", name)
        await self._machine.guest.put(packages, PACKAGES)
        for kind, names in self._packages_by_kind().items():
            await launcher.install(kind, names)

    def _packages_by_kind(self) -> Mapping[PackageKind, Sequence[str]]:
        names = self._resolved.packages
        by_kind = {kind: [name for name in names if package_kind(name) is kind] for kind in PackageKind}
        return {kind: of_kind for kind, of_kind in by_kind.items() if of_kind}

    async def _copy_in(self) -> None:
        for name in some_of(self._resolved.inputs):
            self._enter("copying in", "Copying in input %s", name)
        await asyncio.to_thread(self._check_room)
        await self._machine.guest.put(self._resolved.inputs, self._task.datadir)

    def _check_room(self) -> None:
        """Raise JobError where the inputs can't fit, instead of sending them all to find out."""
        size_mib = sum(path.stat().st_size for path in self._resolved.inputs.values() if path.exists()) // MIB
        room_mib = self._task.scratch_mib
        if room_mib and size_mib > room_mib:
            raise JobError(f"the inputs have {size_mib} MiB, the guest {room_mib} MiB for them: raise <disk_mb>")

    def _program(self) -> Program:
        task = self._task
        return Program(
            path=task.innerjob,
            arguments=task.arguments,
            environment=dict(task.environment),
            stdin=task.stdin,
            stdout=task.stdout,
            stderr=task.stderr,
        )

    async def _follow(self, launcher: Launcher) -> ProgramEnd:
        ran_s, clock = self._progress.program_ran_s, self._run_state.clock
        async with time_limit(self._task.title, self._task.time_limit_s, ran_s=ran_s, clock=clock):
            return await self._end_of_program(launcher)

    async def _end_of_program(self, launcher: Launcher) -> ProgramEnd:
        look_s = _FIRST_LOOK_S
        looks = 0
        while (end := await launcher.ended()) is None:
            await (asyncio.sleep(look_s) if look_s < self._machine.guest.look_s else self._next_look())
            await self._run_state.may_run()
            look_s *= _LOOKS_GROW_BY
            looks += 1
            if looks % _LOOKS_PER_SIGN_OF_LIFE == 0 and not await launcher.is_alive():
                raise GuestError(
                    f"nobody in the guest waits for the end of {self._task.innerjob} any more: was it killed?"
                )
        return end

    async def _hear_often(self) -> NoReturn:
        """Let the progress know what the guest says, beside the program."""
        while True:
            for _ in range(_LOOKS_PER_REPORT):
                await self._next_look()
            await self._run_state.may_run()
            await self._hear()

    async def _next_look(self) -> None:
        await asyncio.sleep(self._machine.guest.look_s - 1.0)
        await next_second()

    async def _hear(self) -> None:
        task, guest, progress = self._task, self._machine.guest, self._progress
        if name := task.fraction_done_filename:
            end = await guest.tail(posixpath.join(task.datadir, name), limit_bytes=reports.FRACTION_DONE_BYTES)
            if end and (fraction := reports.fraction_done(end)) is not None:
                progress.fraction_of_task(fraction)
        if task.partial_credit:
            report = posixpath.join(task.datadir, task.credit_report)
            end = await guest.tail(report, limit_bytes=reports.CREDIT_REPORT_BYTES)
            if end and (operations := reports.operations(end)):
                progress.computed(operations)
        if task.cpu_time_basis is CpuTimeBasis.GUEST:
            said = await guest.read(reports.CPU_TIMES, limit_bytes=reports.CPU_TIMES_BYTES)
            if said and (seconds := reports.cpu_time_s(said)) is not None:
                progress.cpu_time.guest_says(seconds)

    async def _judge(self, end: ProgramEnd, launcher: Launcher) -> None:
        log.info("Program done: %s, %.2f s of CPU time in the guest", end, end.user_s + end.system_s)
        if end.status != 0:
            said = await launcher.last_words(stderr=self._task.stderr) or "(nothing)"
            raise ProgramFailed(f"{self._task.innerjob} failed: {end}. The end of its standard error:\n{said}")

    async def _copy_out(self) -> None:
        outputs = self._resolved.outputs
        for name in some_of(outputs):
            self._enter("copying out", "Copying out output %s", name)
        limit_bytes = (self._task.scratch_mib + self._task.memory_mib) * MIB
        fetch = partial(self._machine.guest.get, self._task.datadir, limit_bytes=limit_bytes)
        await deliver(self._resolved, self._progress, fetch=fetch, place=self._task.datadir, slot=self._slot)

    async def _sanitize(self, launcher: Launcher) -> None:
        """Remove what was copied in and installed. The machine is destroyed anyway: nothing relies on it."""
        names = [*(name for name in self._resolved.inputs if name != self._task.innerjob), self._task.innerjob]
        for name in some_of([*names, *self._resolved.packages]):
            self._enter("cleaning up", "Sanitizing the virtual machine: removing %s", name)
        try:
            async with beside(self._machine.watch()):
                await launcher.remove(names)
                for kind, packages in self._packages_by_kind().items():
                    await launcher.uninstall(kind, packages)
        except VmwrapperError as error:
            log.warning("The virtual machine could not be sanitized, and is destroyed as it is: %s", error)
