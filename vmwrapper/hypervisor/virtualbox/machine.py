"""One machine of VirtualBox's, and the process that runs it."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from vmwrapper.concurrency import beside, to_thread_and_soon_back, ungrouped
from vmwrapper.errors import (
    HostDiskFailed,
    MachineExited,
    ProcessFailed,
    SnapshotFailed,
    SnapshotUnusable,
    VmwrapperError,
)
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.host import check_free_disk, size_if_there
from vmwrapper.hypervisor.interface import MIB, Guest, MachineSpec, Room, Snapshot, Standing
from vmwrapper.hypervisor.serial_file import SerialFile
from vmwrapper.hypervisor.virtualbox.disks import files
from vmwrapper.hypervisor.virtualbox.faults import Fault, fault
from vmwrapper.hypervisor.virtualbox.guest import VirtualBoxGuest
from vmwrapper.hypervisor.virtualbox.place import Place
from vmwrapper.hypervisor.virtualbox.snapshots import Snapshots, Taken
from vmwrapper.hypervisor.virtualbox.vboxmanage import LIMIT_S, VBoxManage, VirtualBoxFailed, environment, facts
from vmwrapper.hypervisor.virtualbox.vm_log import Sign, VmLog, end_by
from vmwrapper.hypervisor.virtualbox.writers import being_written
from vmwrapper.process import Child, child, command_line

log = logging.getLogger(__name__)

_START_LIMIT_S = 60.0
_POWER_OFF_LIMIT_S = 2.0
_FIRST_LOOK_S = 0.02
_PAUSE_S = 0.2
_LOOK_S = 1.0
_ENDS_WITHIN_S = 0.5
_BUSY_LIMIT_S = 10.0
_TRIES_BETWEEN_WRITES = 5
_LOOKS_AT_WRITES = 5
_DEVICES_BYTES = 64 * MIB
_PASSING = {"starting", "saving", "livesnapshotting", "restoring", "deletingsnapshotlive", "deletingsnapshotlivepaused"}
_CANT_USE = re.compile("VERR_SSM_|VERR_(?!VM_DRIVER_|SUP_)[A-Z_]*(LOAD|VERSION|MISMATCH)")
"""What VirtualBox says where it is the snapshot that it does not start for, and not the host."""


class VirtualBoxMachine:
    """See `Machine`. Registered as long as it exists."""

    def __init__(  # noqa: PLR0913  (each of another kind)
        self,
        manage: VBoxManage,
        headless: Sequence[str],
        spec: MachineSpec,
        *,
        place: Place,
        snapshots: Snapshots,
        renew: Callable[[], Awaitable[None]],
        guest: VirtualBoxGuest,
    ) -> None:
        """`headless` is the command of VBoxHeadless; `renew` has the machine as it was created, without snapshots."""
        self._manage = manage
        self._headless = headless
        self._spec = spec
        self._place = place
        self._snapshots = snapshots
        self._console = SerialFile(place.console)
        self._log = VmLog(place.log)
        self._end: VmwrapperError | None = None
        """What its log has told of its end."""
        self._powered = AsyncExitStack()
        self._process: Child | None = None
        self._renew = renew
        self._guest = guest
        self._is_reverted = False
        self._has_old_cap = False
        """On processor time: the snapshot's, which VirtualBox lets be changed while the guest runs only."""
        self._cpu_time_before_s = 0.0
        self._verbs = asyncio.Lock()
        """Of the verbs, one at a time: VirtualBox refuses others meanwhile."""

    @property
    def guest(self) -> Guest:
        return self._guest

    @property
    def console_tail(self) -> str:
        return str(self._console)

    @property
    def _on(self) -> Child:
        if self._process is None:
            raise MachineExited("the machine is powered off")
        return self._process

    async def power_on(self) -> None:
        if self._process is None:
            if self._is_reverted:
                await self._renew()
                self._is_reverted = False
            await self._start(Sign.RUNS)
            self._guest.booted()

    async def _start(self, sign: Sign, *options: str) -> None:
        """On return its log has that sign. Tried again while somebody else has a session, as who only looks at it."""
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                while True:
                    try:
                        return await self._start_once(sign, *options)
                    except MachineExited as error:
                        if not fault(str(error)).passes:
                            raise
                        log.debug("The machine can't be started just now: %s", error)
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError as error:
            limit_s = f"{_START_LIMIT_S:g} s"
            raise MachineExited(f"VirtualBox has not started the machine within {limit_s}") from error

    async def _start_once(self, sign: Sign, *options: str) -> None:
        with _host_disk():
            check_free_disk(self._place.folder)
            self._console.begin()
            self._place.log.unlink(missing_ok=True)
        self._log = VmLog(self._place.log)
        self._end = None
        argv = [*self._headless, "--startvm", self._place.uuid, "--vrde", "off", *options]
        log.debug("%s", command_line(argv))
        process = await self._powered.enter_async_context(
            child(argv, niceness=self._spec.niceness, environment=environment())
        )
        try:
            async with beside(_watch_process(process)):
                while sign not in self._signs():  # noqa: ASYNC110  (nothing tells it)
                    await asyncio.sleep(_FIRST_LOOK_S)
        except BaseException:
            await self._powered.aclose()
            raise
        self._process = process

    async def power_off(self) -> None:
        self._cpu_time_before_s = self.cpu_time_s()
        process, self._process = self._process, None
        self._guest.ended()
        try:
            if process:
                with suppress(VmwrapperError, TimeoutError):
                    async with asyncio.timeout(_POWER_OFF_LIMIT_S):
                        await self._manage("controlvm", self._place.uuid, "poweroff", limit_s=_POWER_OFF_LIMIT_S)
                        await process.ended()
        finally:
            await self._powered.aclose()

    async def pause(self) -> None:
        await self._wait_for_writes()  # a snapshot may be wanted next
        async with self._one_verb("pause"):
            await self._have("pause", "paused")

    async def resume(self) -> None:
        async with self._one_verb("resume"):
            await self._have("resume", "running")
            if self._has_old_cap:
                await self._control("cpuexecutioncap", self._spec.cpu_cap_percent)
                self._has_old_cap = False

    @asynccontextmanager
    async def _one_verb(self, verb: str) -> AsyncIterator[None]:
        try:
            async with self._verbs, asyncio.timeout(LIMIT_S):
                yield
        except TimeoutError as error:
            raise MachineExited(f"VirtualBox did not {verb} the machine within {LIMIT_S:g} s") from error

    async def _have(self, verb: str, state: str) -> None:
        """Have it in this state. VirtualBox complains where it is in it, or still busy with what it was told before."""
        process = self._on
        while True:
            try:
                await self._manage("controlvm", self._place.uuid, verb)
            except VirtualBoxFailed as failed:
                now = await self._state() if failed.fault is Fault.WRONG_STATE else None
                if now not in _PASSING:
                    if now == state:
                        return
                    raise await _broken(process, failed) from failed
            else:
                return
            await asyncio.sleep(_FIRST_LOOK_S)

    async def _state(self) -> str | None:
        try:
            said = await self._manage("showvminfo", self._place.uuid, "--machinereadable")
        except ProcessFailed:
            return None
        return facts(said).get("VMState")

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        return self._snapshots.all()

    def room_for_snapshot(self) -> Room:
        return Room(state_bytes=self._state_bytes, disks_bytes=sum(map(size_if_there, files(self._place.folder))))

    @property
    def _state_bytes(self) -> int:
        return self._spec.memory_mib * MIB + _DEVICES_BYTES

    async def take_snapshot(self, standing: Standing, *, most_bytes: int) -> None:
        """VirtualBox stops a guest by itself, for a moment, and lets it go on, unless it shares a folder."""
        process = self._on
        if self._state_bytes > most_bytes:
            raise SnapshotFailed(f"it may take more than the {most_bytes // MIB} MiB that there are for it")
        async with self._verbs:
            try:
                await self._snapshots.delete_unknown()  # now, since nobody may ask the guest anything later
            except ProcessFailed as failed:
                raise await _broken(process, failed) from failed
        async with self._nothing_asked():
            self._look()
            if self._spec.shared or self._log.state is not Sign.RUNS:
                taken = await self._taken_between_writes(standing)
            else:
                async with self._verbs:
                    with standing():
                        pass  # what was reached by now is in it
                    taken = await self._taken()
        await self._snapshots.secure(taken)

    async def _taken_between_writes(self, standing: Standing) -> Taken:
        """One of a guest that stands, and has no file open for writing that it shares with us.

        Once it went back to another, Linux's vboxsf would try the next write to that file for ever.
        """
        written: Path | None = None
        for _ in range(_TRIES_BETWEEN_WRITES if self._log.state is Sign.RUNS else 1):
            await self._wait_for_writes()
            with standing():
                await self.pause()
                if (written := await self._written()) is None:
                    async with self._verbs:
                        return await self._taken()
            await asyncio.sleep(_PAUSE_S)
        raise SnapshotFailed(
            f"the guest keeps {self._shown(written)} open for writing, which it shares with this computer"
        )

    async def _wait_for_writes(self) -> None:
        """Give a guest that runs a moment to close what it writes."""
        for _ in range(_LOOKS_AT_WRITES):
            self._look()
            if self._log.state is not Sign.RUNS or await self._written() is None:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _written(self) -> Path | None:
        """A file that the guest has open for writing."""
        shared = [self._spec.shared] if self._spec.shared else []
        return await to_thread_and_soon_back(being_written, [self._place.answers, *shared])

    def _shown(self, written: Path | None) -> str:
        if written and self._spec.shared and written.is_relative_to(self._spec.shared):
            return one_line(str(written.relative_to(self._spec.shared)))
        return "its answer to a question"

    async def _taken(self) -> Taken:
        process = self._on
        self._look()
        ran = self._log.state is Sign.RUNS
        try:
            return await self._snapshots.take()
        except SnapshotFailed as failed:
            self._look()
            if ran and self._log.state is Sign.STANDS:  # as where the disk is full; VirtualBox won't have it go on
                raise MachineExited(f"VirtualBox left the guest standing still: {failed}") from failed
            raise
        except ProcessFailed as failed:
            raise await _broken(process, failed) from failed

    @asynccontextmanager
    async def _nothing_asked(self) -> AsyncIterator[None]:
        """Of a guest that runs."""
        self._look()
        if self._log.state is not Sign.RUNS:
            yield
            return
        async with self._guest.nothing_asked(limit_s=_BUSY_LIMIT_S):
            yield

    async def verify_snapshot(self, number: int) -> None:
        await self._snapshots.verify(number)

    async def keep_snapshots(self, numbers: Collection[int]) -> None:
        async with self._verbs:
            await self._snapshots.keep(numbers)

    async def revert(self, snapshot: Snapshot) -> None:
        await self.power_off()
        self._is_reverted = True
        await self._snapshots.restore(snapshot)
        self._has_old_cap = True
        try:
            await self._start(Sign.STANDS, "--start-paused")
        except MachineExited as error:
            if _CANT_USE.search(str(error)):
                raise SnapshotUnusable(f"VirtualBox can't use it: {error}") from error
            raise
        self._guest.reverted()

    async def watch(self) -> NoReturn:
        process = self._on
        with ungrouped():
            async with asyncio.TaskGroup() as watches:
                watches.create_task(self._watch_process(process))
                watches.create_task(self._watch_log())
        raise AssertionError  # the first of them raises

    async def _watch_process(self, process: Child) -> NoReturn:
        await process.ended()
        self._look()
        await _watch_process(process)
        raise AssertionError  # it does

    async def _watch_log(self) -> NoReturn:
        while True:
            self._look()
            self._console.bound()
            self._guest.check()
            self._check_disk()
            await asyncio.sleep(_LOOK_S)

    def _check_disk(self) -> None:
        """A guest may fill it by files that it has deleted, and so nobody sees."""
        with suppress(FileNotFoundError):  # somebody has deleted the slot
            check_free_disk(self._place.folder)

    def _look(self) -> None:
        self._signs()
        if self._end:
            raise self._end

    def _signs(self) -> list[Sign]:
        """What is new in the log. Of an end all hear who look, also later."""
        entries = self._log.look()
        for entry in entries:
            self._end = self._end or end_by(entry)
        return [entry.sign for entry in entries]

    def cpu_time_s(self) -> float:
        return self._cpu_time_before_s + (self._process.cpu_time_s() if self._process else 0.0)

    def working_set_bytes(self) -> int:
        """Where VirtualBox has its kernel module, a guest's memory is not counted as its process's."""
        if not self._process:
            return 0
        return max(self._process.working_set_bytes(), self._spec.memory_mib * MIB)

    async def screenshot(self, file: Path) -> None:
        await self._control("screenshotpng", file)

    async def _control(self, verb: str, *words: str | Path | int) -> None:
        process = self._on
        try:
            await self._manage("controlvm", self._place.uuid, verb, *words)
        except VirtualBoxFailed as failed:
            raise await _broken(process, failed) from failed


async def _watch_process(process: Child) -> NoReturn:
    status = await process.ended()
    raise MachineExited(f"VirtualBox ended with status {status}; it said: {process.last_words or '(nothing)'}")


async def _broken(process: Child, failed: ProcessFailed) -> VmwrapperError:
    """What is to be said of a machine that does not obey: that it has ended, where that is why."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_ENDS_WITHIN_S):
            await process.ended()
            return MachineExited(f"VirtualBox ended; it said: {process.last_words or '(nothing)'}")
    return MachineExited(str(failed))


@contextmanager
def _host_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostDiskFailed(f"can't write the machine's files: {error.strerror}: {error.filename}") from error
