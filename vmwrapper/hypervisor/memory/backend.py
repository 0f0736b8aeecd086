"""A hypervisor in memory, for tests: it keeps the contract of interface.py without a processor.

A guest is a dictionary of files and the few commands that the story uses; programs are Python functions. What can go
wrong is asked for in plain words: `boot_s=inf` is a guest that never gets ready, `put_s=10` a slow copy, and a program,
or a test, ends its machine with `machine.end(GuestPanicked("..."))`. A program whose machine is reverted is called
again, on the files as they were: all that it knows must be in there.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any, NoReturn

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import ungrouped
from vmwrapper.errors import (
    GuestError,
    GuestPoweredOff,
    JobError,
    MachineExited,
    ProcessFailed,
    SnapshotFailed,
    SnapshotUnusable,
    VmwrapperError,
)
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import (
    MIB,
    Abilities,
    Leftover,
    Machine,
    MachineSpec,
    ProbeResult,
    Room,
    Snapshot,
    Standing,
)
from vmwrapper.hypervisor.memory.guest import MemoryGuest, Program

IMAGE = b"a base image for the hypervisor in memory\n"
_CONSOLE_LIMIT_BYTES = 64 * 1024


class Power(Enum):
    """What a machine is doing."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(eq=False)
class MemoryHypervisor:
    """See `Hypervisor`."""

    name = "memory"
    image_suffixes = (".memory",)

    programs: Mapping[str, Program] = field(default_factory=dict)
    """By their file's name in the guest."""
    _: KW_ONLY
    boot_s: float = 0.0
    answer_s: float = 0.0
    """How long each answer of a guest takes."""
    put_s: float = 0.0
    memory_snapshots: bool = True
    works_by_itself: Program | None = None
    """What a guest does from its boot on, and powers off at its end."""
    machines: list["MemoryMachine"] = field(default_factory=list, init=False)
    """All that there ever were."""

    @property
    def abilities(self) -> Abilities:
        return Abilities(guest_commands=True, memory_snapshots=self.memory_snapshots, shared_folder=True)

    async def probe(self, clock: RunningClock) -> ProbeResult:  # noqa: ARG002  (a real one's)
        await asyncio.sleep(0)  # as a real one, it lets others do something
        return ProbeResult(
            name=self.name, version="1", usable=True, accelerated=True, reasons=(), abilities=self.abilities
        )

    @asynccontextmanager
    async def machine(self, spec: MachineSpec, clock: RunningClock) -> AsyncIterator[Machine]:
        if not spec.image.is_file() or spec.image.read_bytes() != IMAGE:
            raise JobError(f"{spec.image} is no image for the hypervisor in memory")
        if spec.shared and not spec.shared.is_dir():
            raise ProcessFailed(f"there is no folder {spec.shared}")
        with ungrouped():
            async with asyncio.TaskGroup() as processes:
                machine = MemoryMachine(self, spec, clock, processes)
                self.machines.append(machine)
                try:
                    yield machine
                finally:
                    await machine.power_off()

    async def leftovers(self) -> Sequence[Leftover]:
        return ()


class MemoryMachine:
    """See `Machine`. Its processor is busy whenever it runs, so that its CPU time is its running time."""

    def __init__(
        self, hypervisor: MemoryHypervisor, spec: MachineSpec, clock: RunningClock, processes: asyncio.TaskGroup
    ) -> None:
        self.hypervisor = hypervisor
        self.snapshots: Sequence[Snapshot] = sorted(spec.snapshots, key=lambda one: -one.number)
        self._directory = spec.directory
        self.shared = spec.shared
        self._memory_bytes = spec.memory_mib * MIB
        self._sweep()
        self.clock = clock
        self.off = asyncio.Event()
        self._processes = processes
        self._process: asyncio.Task[None] | None = None
        self._awake = asyncio.Event()
        self._end: asyncio.Future[VmwrapperError] = asyncio.get_running_loop().create_future()
        self._own_clock = RunningClock()
        self._console = b""
        self._enter(Power.OFF)
        self.guest = MemoryGuest(self)

    @property
    def console_tail(self) -> str:
        return printable(self._console, limit=_CONSOLE_LIMIT_BYTES)

    async def power_on(self) -> None:
        if self.power is Power.OFF:
            self._end = asyncio.get_running_loop().create_future()
            self.guest = MemoryGuest(self)
            self._enter(Power.RUNNING)
            self._boot()

    async def power_off(self) -> None:
        self._enter(Power.OFF)

    async def pause(self) -> None:
        if self.power is Power.RUNNING:
            self._enter(Power.PAUSED)

    async def resume(self) -> None:
        if self.power is Power.OFF:
            raise self._why_off()
        self._enter(Power.RUNNING)

    def room_for_snapshot(self) -> Room:
        return Room(state_bytes=self._memory_bytes, disks_bytes=0)

    async def take_snapshot(self, standing: Standing, *, most_bytes: int) -> None:
        number = 1 + max((one.number for one in self.snapshots), default=0)
        with standing():
            await self.pause()
            state = self.guest.state()
            await asyncio.sleep(self.hypervisor.answer_s)
        if len(state) > most_bytes:
            raise SnapshotFailed("the snapshot is too large")
        (self._directory / f"snapshot-{number}").write_text(state)
        self.snapshots = [Snapshot(number, _digest(state)), *self.snapshots]

    async def verify_snapshot(self, number: int) -> None:
        [snapshot] = [one for one in self.snapshots if one.number == number]
        self._read(snapshot)

    def _read(self, snapshot: Snapshot) -> str:
        try:
            state = (self._directory / f"snapshot-{snapshot.number}").read_text()
        except (OSError, ValueError) as error:
            raise SnapshotUnusable("the snapshot can't be read") from error
        if snapshot.description != _digest(state):
            raise SnapshotUnusable("the snapshot is damaged")
        return state

    async def keep_snapshots(self, numbers: Collection[int]) -> None:
        self.snapshots = [one for one in self.snapshots if one.number in numbers]
        self._sweep()

    def _sweep(self) -> None:
        names = {f"snapshot-{one.number}" for one in self.snapshots}
        for path in self._directory.iterdir():
            if path.name not in names and path != self.shared:
                path.unlink()

    async def revert(self, snapshot: Snapshot) -> None:
        await self.power_off()
        state = self._read(snapshot)
        self._end = asyncio.get_running_loop().create_future()
        self.guest = MemoryGuest(self)
        self._enter(Power.PAUSED)
        self.guest.go_on(state)
        self._boot()

    def _boot(self) -> None:
        if program := self.hypervisor.works_by_itself:
            self.start(self._work(program))

    async def _work(self, program: Program) -> None:
        await self.awake()
        await program(self.guest)
        self.end(GuestPoweredOff("the guest powered off before the task was done"))

    async def watch(self) -> NoReturn:
        raise await asyncio.shield(self._end)

    def cpu_time_s(self) -> float:
        return self._own_clock.elapsed_s

    def working_set_bytes(self) -> int:
        return 0 if self.power is Power.OFF else len(IMAGE)

    def end(self, error: VmwrapperError) -> None:
        """End by itself, as `watch` then tells it."""
        if self.power is not Power.OFF:
            self._enter(Power.OFF)
            self._end.set_result(error)
        if isinstance(error, GuestError):
            self._awake.clear()  # the hypervisor is still there, so that nobody closes a connection

    def say(self, words: bytes) -> None:
        """Write to the console."""
        self._console = (self._console + words)[-_CONSOLE_LIMIT_BYTES:]

    async def awake(self) -> None:
        """Wait until the machine is not paused. Raises MachineExited where it is off, or what it ended with."""
        await self._awake.wait()
        if self.power is Power.OFF:
            raise self._why_off()

    async def passes(self, seconds: float) -> None:
        """Wait for so much of the machine's running time, or for its end."""
        with suppress(TimeoutError):
            async with self._own_clock.timeout(seconds):
                await self.off.wait()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on until `end_process` or the machine's end."""
        self._process = self._processes.create_task(work)

    def end_process(self) -> None:
        if self._process:
            self._process.cancel()

    def _why_off(self) -> VmwrapperError:
        return self._end.result() if self._end.done() else MachineExited("the machine is off")

    def _enter(self, power: Power) -> None:
        self.power = power
        match power:
            case Power.RUNNING:
                self._own_clock.go()
                self._awake.set()
                self.off.clear()
            case Power.PAUSED:
                self._own_clock.stop()
                self._awake.clear()
            case Power.OFF:
                self._own_clock.stop()
                self._awake.set()
                self.off.set()
                self.end_process()


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()
