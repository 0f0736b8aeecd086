"""One task in its machine: prepare, copy in, run, follow, copy out."""

import asyncio
import logging
import math
import posixpath
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from vmwrapper.boinc.slot_files import is_soft_link
from vmwrapper.checkpoint import Checkpoint, Record, write_record
from vmwrapper.checkpointer import Checkpointer
from vmwrapper.clock import next_second
from vmwrapper.concurrency import beside, to_thread_and_back
from vmwrapper.errors import (
    GuestError,
    GuestPanicked,
    GuestPoweredOff,
    GuestSilent,
    JobError,
    MachineExited,
    ProgramFailed,
    RevertedMachineExited,
    SnapshotUnusable,
    TimeLimitExceeded,
    VmwrapperError,
)
from vmwrapper.guest import reports
from vmwrapper.guest.launcher import PACKAGES, Launcher, Program, ProgramEnd
from vmwrapper.guest.reseed import SEED_BYTES
from vmwrapper.hostile import one_line, some_of
from vmwrapper.hypervisor.interface import MIB, FileKind, Machine
from vmwrapper.job.model import CpuTimeBasis, PackageKind, package_kind
from vmwrapper.job.resolve import ResolvedTask
from vmwrapper.outputs import arriving, bring_to_disk, put_in_place
from vmwrapper.progress import Progress
from vmwrapper.run_state import RunState

log = logging.getLogger(__name__)

CONSOLE_LINES = 20
_SUSPICIOUS_S = 60.0
_FIRST_LOOK_S = 0.05
_LOOKS_GROW_BY = 1.5
_LOOKS_PER_SIGN_OF_LIFE = 30
_LOOKS_PER_REPORT = 3

Kept = Callable[[], AbstractAsyncContextManager[None]]
"""See `Keeper.kept`."""


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
        await self._run_state.may_run()
        if await self._go_on_from_any(kept):
            return
        self._progress.activity = "booting"
        await self._machine.power_on()
        log.info("Machine is on")
        await self._while_on(None, kept)

    async def _go_on_from_any(self, kept: Kept | None) -> bool:
        """Whether there is a checkpoint from which the task could be brought to its end."""
        if not self._progress.checkpoints:
            return False
        for checkpoint in self._progress.promising_checkpoints if self._checkpointer else ():
            try:
                await self._go_on(checkpoint, kept)
            except SnapshotUnusable as error:
                log.warning("Checkpoint %d can't be used: %s", checkpoint.snapshot.number, one_line(str(error)))
            else:
                return True
        log.warning("The task begins anew: there is no other checkpoint")
        self._progress.begin_anew()
        return False

    async def _go_on(self, checkpoint: Checkpoint, kept: Kept | None) -> None:
        self._progress.activity = "going back to the checkpoint"
        await self._machine.revert(checkpoint.snapshot)
        self._progress.go_on(checkpoint.reached)
        log.info("Machine is on, as it was at checkpoint %d", checkpoint.snapshot.number)
        await self._while_on(checkpoint, kept)

    async def _while_on(self, checkpoint: Checkpoint | None, kept: Kept | None) -> None:
        launcher = Launcher(self._machine.guest, datadir=self._task.datadir, user=self._task.user)
        try:
            async with (
                kept() if kept else nullcontext(),
                beside(self._run_state.drive(self._machine, running=checkpoint is None)),
            ):
                try:
                    async with beside(self._machine.watch()):
                        await self._in_guest(launcher, checkpoint)
                except (GuestError, MachineExited) as error:
                    self._log_console()
                    if checkpoint and self._is_newest(checkpoint):
                        raise self._suspicion(checkpoint, error) from error
                    raise
                if kept is None:
                    await self._sanitize(launcher)
        finally:
            await self._machine.power_off()

    def _is_newest(self, checkpoint: Checkpoint) -> bool:
        """Whether it was not yet good for another one."""
        newest = self._progress.checkpoints[:1]
        return [one.snapshot.number for one in newest] == [checkpoint.snapshot.number]

    def _suspicion(self, checkpoint: Checkpoint, error: VmwrapperError) -> VmwrapperError:
        """The error, where a machine may have ended for what it was reverted to."""
        ran_s = self._progress.program_ran_s - checkpoint.reached.program_ran_s
        if isinstance(error, GuestPanicked | GuestPoweredOff) and ran_s < _SUSPICIOUS_S:
            return SnapshotUnusable(f"soon after {error}")
        if type(error) is MachineExited:
            return RevertedMachineExited(str(error))
        return error

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
        limit_s = self._task.time_limit_s
        left_s = limit_s - self._progress.program_ran_s if limit_s else math.inf
        try:
            async with self._run_state.clock.timeout(left_s):
                return await self._end_of_program(launcher)
        except TimeoutError as error:
            raise TimeLimitExceeded(f"{self._task.innerjob} ran for longer than its {limit_s:g} s") from error

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
        with ExitStack() as names:
            arrived = {name: arriving(path, names) for name, path in outputs.items()}
            kinds = await self._machine.guest.get(self._task.datadir, arrived, limit_bytes=limit_bytes)
            regular = [name for name, kind in kinds.items() if kind is FileKind.REGULAR]
            if links := [name for name in regular if name in self._resolved.unlinked and is_soft_link(arrived[name])]:
                listed = ", ".join(some_of(links))
                raise ProgramFailed(f"{self._task.innerjob} left a BOINC <soft_link> as {listed}, in the client's slot")
            for name in regular:
                await asyncio.to_thread(bring_to_disk, arrived[name])
            whole = {arrived[name]: outputs[name] for name in regular}
            if missing := [_described(name, kind) for name, kind in kinds.items() if kind is not FileKind.REGULAR]:
                await to_thread_and_back(put_in_place, whole)
                listed = ", ".join(some_of(missing))
                raise ProgramFailed(f"{self._task.innerjob} left no file {listed} in {self._task.datadir}")
            self._progress.end_task()
            record = self._progress.record()
            await to_thread_and_back(self._finish, record, whole, names)
            self._progress.checkpointed(record)

    def _finish(self, record: Record, outputs: Mapping[Path, Path], names: ExitStack) -> None:
        """Put all outputs in place as one: as soon as the record has them, the next episode would go on with that."""
        write_record(self._slot, replace(record, tasks_in_place=record.tasks_in_place - 1))
        names.pop_all()
        put_in_place(outputs)
        write_record(self._slot, record)

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

    def _log_console(self) -> None:
        last_lines = self._machine.console_tail.splitlines()[-CONSOLE_LINES:]
        log.error("The end of the guest's console:\n%s", "\n".join(last_lines) or "(nothing)")


def _described(name: str, kind: FileKind) -> str:
    return name if kind is FileKind.MISSING else f"{name} (it is {kind.value})"
