"""One machine of a vSphere server's."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import (
    GuestPoweredOff,
    HostDiskFailed,
    JobError,
    MachineExited,
    SnapshotUnusable,
    TemporaryFailure,
)
from vmwrapper.hypervisor.interface import Guest, MachineSpec, Room, Snapshot, Standing
from vmwrapper.hypervisor.outputs import writing
from vmwrapper.hypervisor.vmware.vsphere.connection import PATIENCE_S, Connection, Properties
from vmwrapper.hypervisor.vmware.vsphere.datastore_file import taken
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.guest import Handle, VsphereGuest
from vmwrapper.hypervisor.vmware.vsphere.made import OFF, ON, SUSPENDED, power_off, power_state
from vmwrapper.hypervisor.vmware.vsphere.snapshots import SNAPSHOT_LIMIT_S, Snapshots
from vmwrapper.hypervisor.vmware.vsphere.transfer import Transfers
from vmwrapper.hypervisor.vmware.vsphere.usage import QUICK_STATS, SAMPLE_S, Counter, CpuTime, memory_bytes, rate
from vmwrapper.hypervisor.vmware.vsphere.vim_task import answered, vim_task

log = logging.getLogger(__name__)

_VERB_LIMIT_S = 300.0
_POWER_OFF_LIMIT_S = 60.0
_REVERT_LIMIT_S = SNAPSHOT_LIMIT_S + _POWER_OFF_LIMIT_S + _VERB_LIMIT_S
_LOOK_S = 3.0
_MOST_PICTURE_BYTES = 64 << 20
_WATCHED = (
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.question",
    "guest.toolsRunningStatus",
    "guest.toolsVersion",
    *QUICK_STATS,
)


class VsphereMachine:
    """See `Machine`, `Screen`. It stands still by being suspended: vSphere has no other pause."""

    def __init__(  # noqa: PLR0913  (each of another kind)
        self,
        connection: Connection,
        handle: Handle,
        spec: MachineSpec,
        *,
        snapshots: Snapshots,
        renew: Callable[[], Awaitable[None]],
        guest: VsphereGuest | None,
        transfers: Transfers,
    ) -> None:
        """`renew` has the machine as it was created, without snapshots; `guest` is None where nobody may log in."""
        self._connection = connection
        self._handle = handle
        self._spec = spec
        self._snapshots = snapshots
        self._renew = renew
        self._guest = guest
        self._transfers = transfers
        self._is_reverted = False
        self._meant = OFF
        self._seen: Properties = {}
        self._cpu_time = CpuTime(spec.cpus)
        self._counter = Counter(connection)
        self._verbs = asyncio.Lock()
        """Of the verbs, one at a time: the server refuses others meanwhile."""
        self._has_told_tools = False

    @property
    def guest(self) -> Guest:
        if self._guest is None:
            raise JobError("vSphere gives commands to a guest only as one of its users: the job has no <password>")
        return self._guest

    @property
    def console_tail(self) -> str:
        """Nothing: a guest's console would take a serial port on a network."""
        return ""

    async def power_on(self) -> None:
        async with self._one_verb("power on"):
            if self._meant is not OFF:
                return
            if self._is_reverted:
                await self._renew()
                self._is_reverted = False
            elif await power_state(self._connection, self._handle.machine) != OFF:  # it could not be powered off
                await power_off(self._connection, self._handle.machine, limit_s=_POWER_OFF_LIMIT_S)
            await self._have(ON)

    async def power_off(self) -> None:
        self._cpu_time.ends()
        self._seen = {}
        self._meant = OFF
        off = power_off(self._connection, self._handle.machine, limit_s=_POWER_OFF_LIMIT_S)
        try:
            await to_its_end(off, limit_s=_POWER_OFF_LIMIT_S)
        except TemporaryFailure as failed:  # what comes next sees to it
            log.warning("The machine may still run: %s", failed)

    async def pause(self) -> None:
        async with self._one_verb("pause"):
            self._must_be_on()
            await self._have(SUSPENDED)

    async def resume(self) -> None:
        async with self._one_verb("resume"):
            self._must_be_on()
            await self._have(ON)

    def _must_be_on(self) -> None:
        if self._meant is OFF:
            raise MachineExited("the machine is powered off")

    @asynccontextmanager
    async def _one_verb(self, verb: str, *, limit_s: float = _VERB_LIMIT_S) -> AsyncIterator[None]:
        try:
            async with self._verbs, asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            message = f"the vSphere server did not {verb} the machine within {limit_s:g} s"
            raise MachineExited(message) from error
        except VsphereFailed as failed:
            if failed.fault is Fault.NO_SPACE:
                raise HostDiskFailed(str(failed)) from failed
            raise MachineExited(str(failed)) from failed

    async def _have(self, state: str) -> None:
        """Have it in this state, ON or SUSPENDED; it is told so only if it is not, as somebody else may have done."""
        machine = self._handle.machine
        if state is SUSPENDED:
            self._cpu_time.stands()
        before, self._meant = self._meant, state
        now = await power_state(self._connection, machine)
        if now == OFF and before is not OFF:
            raise GuestPoweredOff("the guest powered off by itself")
        if now != state:
            begin, arguments = ("PowerOn", (None,)) if state is ON else ("Suspend", ())
            try:
                await vim_task(self._connection, machine, begin, *arguments, machine=machine, limit_s=_VERB_LIMIT_S)
            except VsphereFailed as failed:
                if failed.fault is not Fault.WRONG_STATE or await power_state(self._connection, machine) != state:
                    raise
        if state is ON:
            self._cpu_time.runs()

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        return self._snapshots.all()

    def room_for_snapshot(self) -> Room:
        """None of this computer's disk: it is the server's."""
        return Room(state_bytes=0, disks_bytes=0)

    async def take_snapshot(self, standing: Standing, *, most_bytes: int) -> None:  # noqa: ARG002  (of this computer's)
        """The server stops the guest by itself, for a moment, and lets go on what ran before."""
        self._must_be_on()
        async with self._verbs:
            with standing():
                pass  # what was reached by now is in it
            await self._snapshots.take()

    async def verify_snapshot(self, number: int) -> None:
        await self._snapshots.verify(number)

    async def keep_snapshots(self, numbers: Collection[int]) -> None:
        async with self._verbs:
            await self._snapshots.keep(numbers)

    async def revert(self, snapshot: Snapshot) -> None:
        async with self._one_verb("revert", limit_s=_REVERT_LIMIT_S):
            await self.power_off()
            self._is_reverted = True
            await self._snapshots.restore(snapshot)
            self._meant = ON
            try:
                await self._have(SUSPENDED)
            except GuestPoweredOff as off:
                raise SnapshotUnusable("the machine is off after it") from off

    async def screenshot(self, file: Path) -> None:
        """The server draws it, in a file on its datastore."""
        async with self._one_verb("draw the screen of"):
            self._must_be_on()
            machine, limit_bytes = self._handle.machine, _MOST_PICTURE_BYTES
            name = await vim_task(self._connection, machine, "CreateScreenshot", machine=machine, limit_s=_VERB_LIMIT_S)
            picture = await taken(self._connection, self._transfers, machine, name, limit_bytes=limit_bytes)
        with writing(file):
            await asyncio.to_thread(file.write_bytes, picture)

    async def watch(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        seen_at_s, sampled_at_s = loop.time(), 0.0
        while True:
            try:
                await self._look()
                if loop.time() - sampled_at_s >= SAMPLE_S:
                    sampled_at_s = loop.time()
                    await self._sample()
                seen_at_s = loop.time()
            except VsphereFailed as failed:
                if not failed.fault.passes or loop.time() - seen_at_s > PATIENCE_S:
                    raise MachineExited(f"the machine can't be watched any more: {failed}") from failed
                log.debug("The machine can't be seen just now: %s", failed)
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        """One round trip. Raises what has ended the machine, if that is so."""
        machine, meant = self._handle.machine, self._meant
        seen = (await self._connection.properties({machine: _WATCHED}))[machine]
        if meant is not self._meant or self._verbs.locked():
            return  # it may be from before what was just done
        self._seen = seen
        if seen.get("runtime.connectionState") not in ("connected", None):
            log.debug("The machine's host is %s", seen["runtime.connectionState"])
            return  # it may run on: that is not known
        if question := seen.get("runtime.question"):
            await answered(self._connection, machine, question)
        self._judge(seen.get("runtime.powerState"))
        if (used := rate(seen, self._spec.cpus)) is not None:
            self._cpu_time.at_rate(used)
        if not self._has_told_tools and seen.get("guest.toolsRunningStatus") == "guestToolsRunning":
            self._has_told_tools = True
            log.info("VMware Tools %s run in the guest", seen.get("guest.toolsVersion", "of unknown version"))

    def _judge(self, state: Any) -> None:
        if self._meant is OFF:
            raise MachineExited("the machine is powered off")
        if state == OFF:
            raise GuestPoweredOff("the guest powered off by itself")
        if state == SUSPENDED and self._meant is ON:
            raise MachineExited("somebody has suspended the machine")
        if state == ON and self._meant is SUSPENDED:
            raise MachineExited("somebody has let the machine go on that is to stand still")

    async def _sample(self) -> None:
        try:
            self._cpu_time.sampled(await self._counter.new_samples(self._handle.machine))
        except VsphereFailed as failed:
            if failed.fault.passes:
                raise
            log.debug("There are no samples of CPU time: %s", failed)

    def cpu_time_s(self) -> float:
        return self._cpu_time.total_s()

    def working_set_bytes(self) -> int:
        """Of the server's host, as of the last look."""
        return memory_bytes(self._seen) if self._meant is not OFF else 0
