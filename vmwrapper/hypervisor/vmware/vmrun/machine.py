"""One machine of VMware's."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import (
    HostDiskFailed,
    HostMemoryShort,
    JobError,
    MachineExited,
    ProcessFailed,
    SnapshotFailed,
    VmwrapperError,
)
from vmwrapper.hypervisor.host import check_free_disk, size_if_there
from vmwrapper.hypervisor.interface import MIB, Guest, MachineSpec, Room, Snapshot, Standing
from vmwrapper.hypervisor.serial_file import SerialFile
from vmwrapper.hypervisor.vmware.called_guest import CalledGuest
from vmwrapper.hypervisor.vmware.vmrun.faults import Fault
from vmwrapper.hypervisor.vmware.vmrun.place import Place
from vmwrapper.hypervisor.vmware.vmrun.running import Running, running
from vmwrapper.hypervisor.vmware.vmrun.snapshots import Snapshots
from vmwrapper.hypervisor.vmware.vmrun.vm_log import VmLog
from vmwrapper.hypervisor.vmware.vmrun.vmrun import LIMIT_S, Vmrun, VmrunFailed

log = logging.getLogger(__name__)

_START_LIMIT_S = 60.0
_APPEARING_LIMIT_S = 5.0
_POWER_OFF_LIMIT_S = 10.0
_ENDING_LIMIT_S = 2.0
_FIRST_LOOK_S = 0.05
_LOOK_S = 0.5
_DEVICES_BYTES = 64 * MIB


class VmrunMachine:
    """See `Machine`."""

    def __init__(  # noqa: PLR0913  (each of another kind)
        self,
        vmrun: Vmrun,
        spec: MachineSpec,
        *,
        place: Place,
        snapshots: Snapshots,
        renew: Callable[[], Awaitable[None]],
        guest: CalledGuest | None,
    ) -> None:
        """`renew` has the machine as it was created, without snapshots. `guest` is None where nobody may log in."""
        self._vmrun = vmrun
        self._spec = spec
        self._place = place
        self._snapshots = snapshots
        self._renew = renew
        self._guest = guest
        self._console = SerialFile(place.console)
        self._log = VmLog(place.log)
        self._end: VmwrapperError | None = None
        """What its log has told of its end."""
        self._process: Running | None = None
        self._may_run = False
        self._is_paused = False
        self._is_stopped = False
        """Paused by its process, where the product can't."""
        self._is_used = bool(snapshots.all())
        """Its disks are not the base image's."""
        self._cpu_time_before_s = 0.0
        self._verbs = asyncio.Lock()
        """Of the verbs, one at a time: VMware refuses others meanwhile."""

    @property
    def guest(self) -> Guest:
        if self._guest is None:
            raise JobError("VMware gives commands to a guest only as one of its users: the job has no <password>")
        return self._guest

    @property
    def console_tail(self) -> str:
        return str(self._console)

    @property
    def _on(self) -> Running:
        if self._process is None:
            raise MachineExited("the machine is powered off")
        return self._process

    async def power_on(self) -> None:
        if self._process is None:
            if self._is_used:
                await self._renew()
                self._is_used = False
            await self._start()

    async def _start(self) -> None:
        try:
            check_free_disk(self._place.folder)
            self._console.begin()
            self._place.log.unlink(missing_ok=True)
        except OSError as error:
            raise HostDiskFailed(f"can't write the machine's files: {error.strerror}: {error.filename}") from error
        self._log, self._end = VmLog(self._place.log), None
        self._is_paused = self._is_stopped = False
        self._may_run = True
        try:
            await self._vmrun("start", self._place.vmx, "nogui", limit_s=_START_LIMIT_S)
        except VmrunFailed as failed:
            raise _why_not(failed) from failed
        except ProcessFailed as failed:
            raise MachineExited(str(failed)) from failed
        self._process = await self._appeared()
        self._process.be_nice(self._spec.niceness)

    async def _appeared(self) -> Running:
        with suppress(TimeoutError):
            async with asyncio.timeout(_APPEARING_LIMIT_S):
                while True:
                    if found := await to_thread_and_back(running, self._place.vmx):
                        return found[0]
                    self._look()
                    await asyncio.sleep(_FIRST_LOOK_S)
        raise MachineExited(f"vmrun started the machine, and no process runs it; its log: {self._log.complaints}")

    async def power_off(self) -> None:
        self._cpu_time_before_s = self.cpu_time_s()
        process, self._process = self._process, None
        if not self._may_run:
            return
        try:
            if process and process.is_alive and not self._is_stopped:
                with suppress(VmwrapperError, TimeoutError):
                    await self._vmrun("stop", self._place.vmx, "hard", limit_s=_POWER_OFF_LIMIT_S)
                    async with asyncio.timeout(_ENDING_LIMIT_S):
                        while process.is_alive:  # noqa: ASYNC110  (nothing tells it)
                            await asyncio.sleep(_FIRST_LOOK_S)
        finally:
            await to_thread_and_back(end_processes, self._place.vmx)
        self._may_run = False

    async def pause(self) -> None:
        async with self._one_verb("pause"):
            await self._have_paused()

    async def _have_paused(self) -> None:
        process = self._on
        if self._is_paused:
            return
        try:
            await self._told("pause", process, but=Fault.PAUSED)
        except VmrunFailed as failed:
            if failed.fault is not Fault.UNSUPPORTED:
                raise await self._broken(process, failed) from failed
            process.stop()
            self._is_stopped = True
        self._is_paused = True

    async def resume(self) -> None:
        async with self._one_verb("resume"):
            process = self._on
            if self._is_stopped:
                process.go()
            elif self._is_paused:
                try:
                    await self._told("unpause", process, but=Fault.RUNNING)
                except VmrunFailed as failed:
                    raise await self._broken(process, failed) from failed
            self._is_paused = self._is_stopped = False
            if not process.is_alive:
                raise MachineExited(f"VMware ended the machine; its log: {self._log.complaints}")

    async def _told(self, verb: str, process: Running, *, but: Fault) -> None:
        """Have vmrun do that. Where the fault is `but`, it was so before."""
        try:
            await self._vmrun(verb, self._place.vmx)
        except VmrunFailed as failed:
            if failed.fault is but and process.is_alive:
                return
            raise

    @asynccontextmanager
    async def _one_verb(self, verb: str) -> AsyncIterator[None]:
        try:
            async with self._verbs, asyncio.timeout(LIMIT_S):
                yield
        except TimeoutError as error:
            raise MachineExited(f"VMware did not {verb} the machine within {LIMIT_S:g} s") from error
        except VmwrapperError as error:
            if isinstance(error, ProcessFailed) and not isinstance(error, VmrunFailed):
                raise MachineExited(str(error)) from error
            raise

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        return self._snapshots.all()

    def room_for_snapshot(self) -> Room:
        with suppress(OSError):
            sizes = [size_if_there(path) for path in self._place.folder.iterdir() if path.suffix == ".vmdk"]
            return Room(state_bytes=self._state_bytes, disks_bytes=sum(sizes))
        return Room(state_bytes=self._state_bytes, disks_bytes=0)

    @property
    def _state_bytes(self) -> int:
        return self._spec.memory_mib * MIB + _DEVICES_BYTES

    async def take_snapshot(self, standing: Standing, *, most_bytes: int) -> None:
        """VMware stops the guest by itself, and lets go on what ran before."""
        process = self._on
        if self._state_bytes > most_bytes:
            raise SnapshotFailed(f"it may take more than the {most_bytes // MIB} MiB that there are for it")
        async with self._verbs, self._quiet_guest():
            with standing():
                pass  # what was reached by now is in it
            self._look()
            if self._is_stopped:
                raise SnapshotFailed("VMware takes none of a machine whose process stands still")
            try:
                await self._snapshots.take()
            except SnapshotFailed:
                self._look()
                if not process.is_alive:
                    raise self._ended() from None
                raise
            except ProcessFailed as failed:
                raise await self._broken(process, failed) from failed
            finally:
                if self._is_paused and process.is_alive:
                    await self._pause_again(process)

    async def _pause_again(self, process: Running) -> None:
        """Whether VMware lets a paused guest stand when it has taken a snapshot of it is written nowhere."""
        try:
            await self._told("pause", process, but=Fault.PAUSED)
        except ProcessFailed as failed:
            log.debug("The machine was not paused again, and probably still is: %s", failed)

    @asynccontextmanager
    async def _quiet_guest(self) -> AsyncIterator[None]:
        if self._guest is None:
            yield
            return
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._guest.quiet.acquire()
        except TimeoutError as error:
            raise SnapshotFailed("the guest is busy with a command") from error
        try:
            yield
        finally:
            self._guest.quiet.release()

    async def verify_snapshot(self, number: int) -> None:
        await self._snapshots.verify(number)

    async def keep_snapshots(self, numbers: Collection[int]) -> None:
        async with self._verbs:
            await self._snapshots.keep(numbers)

    async def revert(self, snapshot: Snapshot) -> None:
        """The guest runs on for the moment between vmrun's starting and its pausing it: it has no way to do both."""
        await self.power_off()
        self._is_used = True
        await self._snapshots.restore(snapshot)
        await self._start()
        async with self._one_verb("pause"):
            await self._have_paused()

    async def watch(self) -> NoReturn:
        process = self._on
        while True:
            await asyncio.sleep(_LOOK_S)
            is_alive = process.is_alive
            self._look()
            if not is_alive:
                raise self._ended()
            self._console.bound()

    def _look(self) -> None:
        """Of an end that the log tells all hear who look, also later."""
        self._end = self._end or self._log.end()
        if self._end:
            raise self._end

    def _ended(self) -> VmwrapperError:
        return MachineExited(f"VMware's process of the machine ended; its log: {self._log.complaints}")

    async def _broken(self, process: Running, failed: ProcessFailed) -> VmwrapperError:
        """What is to be said of a machine that does not obey: that it has ended, where that is why."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                while process.is_alive:  # noqa: ASYNC110  (nothing tells it)
                    await asyncio.sleep(_FIRST_LOOK_S)
                return self._end or self._log.end() or self._ended()
        return MachineExited(str(failed))

    def cpu_time_s(self) -> float:
        return self._cpu_time_before_s + (self._process.cpu_time_s() if self._process else 0.0)

    def working_set_bytes(self) -> int:
        """A guest's memory is VMware's kernel module's, and not counted as its process's."""
        if self._process is None or not self._process.is_alive:
            return 0
        return max(self._process.working_set_bytes(), self._spec.memory_mib * MIB)


def end_processes(vmx: Path) -> None:
    """End what runs the machine, if anything does. Blocks for a moment."""
    for process in running(vmx):
        log.debug("ending VMware's process %d of %s", process.pid, vmx)
        process.kill()


def _why_not(failed: VmrunFailed) -> VmwrapperError:
    if failed.fault is Fault.NO_SPACE:
        return HostDiskFailed(str(failed))
    if failed.fault is Fault.NO_MEMORY:
        return HostMemoryShort(str(failed))
    return MachineExited(f"VMware does not start the machine: {failed}")
