"""One QEMU process, its monitor and its ports."""

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside, ungrouped
from vmwrapper.digest import digest_of
from vmwrapper.errors import (
    GuestPanicked,
    GuestPoweredOff,
    HostDiskFailed,
    MachineExited,
    SnapshotFailed,
    SnapshotUnusable,
)
from vmwrapper.guest.bundle import Bundle, verify
from vmwrapper.hypervisor.interface import MIB, MachineSpec, Room, Snapshot, Standing
from vmwrapper.hypervisor.qemu import migration
from vmwrapper.hypervisor.qemu.agent import REPLY_LIMIT_BYTES, Agent
from vmwrapper.hypervisor.qemu.base_image import BaseImage
from vmwrapper.hypervisor.qemu.command import AGENT_PORT, CONSOLE, DATA_PORT, MONITOR, SOCKETS, Qemu, command
from vmwrapper.hypervisor.qemu.console import ConsoleTail
from vmwrapper.hypervisor.qemu.files import MachineFiles
from vmwrapper.hypervisor.qemu.guest import QemuGuest, broken, exit_error
from vmwrapper.hypervisor.qemu.layers import Disks
from vmwrapper.hypervisor.qemu.merging import Merging
from vmwrapper.hypervisor.qemu.saved import Saved
from vmwrapper.hypervisor.qemu.snapshots import Snapshots
from vmwrapper.hypervisor.qemu.transfer import DataPort
from vmwrapper.process import Child, child, command_line

log = logging.getLogger(__name__)

_MONITOR_LIMIT_S = 60.0
"""Stopping flushes the disks, which may have much to write."""
_DEVICES_BYTES = 32 * MIB
_CANT_USE = re.compile("load of migration failed|qcow2")
"""What QEMU says where it is the snapshot that it ends for, and not the host."""


@dataclass(frozen=True, slots=True)
class _Running:
    """What there is of a machine while it is powered on."""

    child: Child
    monitor: QMPClient
    guest: QemuGuest
    events: EventListener
    merging: Merging


class QemuMachine:
    """See `Machine`."""

    def __init__(  # noqa: PLR0913  (each of another kind)
        self,
        qemu: Qemu,
        spec: MachineSpec,
        *,
        image: BaseImage,
        files: MachineFiles,
        disks: Disks,
        snapshots: Snapshots,
        clock: RunningClock,
    ) -> None:
        self._qemu = qemu
        self._spec = spec
        self._image = image
        self._files = files
        self._disks = disks
        self._snapshots = snapshots
        self._clock = clock
        self._console = ConsoleTail()
        self._cpu_time_before_s = 0.0
        self._powered = AsyncExitStack()
        self._running: _Running | None = None
        self._is_reverted = False

    @property
    def guest(self) -> QemuGuest:
        return self._on.guest

    @property
    def console_tail(self) -> str:
        return str(self._console)

    @property
    def _on(self) -> _Running:
        if self._running is None:
            raise MachineExited("the machine is powered off")
        return self._running

    async def power_on(self) -> None:
        if self._running is None:
            if not all(self._disks.stacks.values()):
                await self._snapshots.begin()
            await self._start(waits=False)

    async def _start(self, *, waits: bool) -> None:
        self._console.halted.clear()
        ours: dict[str, socket.socket] = {}
        inherited: dict[str, int] = {}
        with ExitStack() as theirs:
            for name in SOCKETS:
                our_end, their_end = socket.socketpair()
                ours[name] = self._powered.enter_context(our_end)
                inherited[name] = theirs.enter_context(their_end).fileno()
            argv = command(
                self._qemu, self._spec, self._image, self._files, self._disks, sockets=inherited, waits=waits
            )
            log.debug("%s", command_line(argv))
            layers = [layer.file.fileno() for layer in self._disks.all_layers()]
            fds = [*inherited.values(), *self._files.descriptors(), *layers]
            process = await self._powered.enter_async_context(child(argv, pass_fds=fds, niceness=self._spec.niceness))
        self._running = await self._connect(process, ours)

    async def _connect(self, process: Child, ours: Mapping[str, socket.socket]) -> _Running:
        loop = asyncio.get_running_loop()
        console, _ = await loop.create_connection(lambda: self._console, sock=ours[CONSOLE])
        self._powered.callback(console.close)
        agent = Agent(*await self._streams(ours[AGENT_PORT]), self._clock)
        data_port = DataPort(
            *await self._streams(ours[DATA_PORT]), agent.run_script, self._clock, self._files.window.fileno()
        )
        monitor = QMPClient()
        monitor.events.event_filter = lambda _: False  # or else it keeps every event, for ever
        events = EventListener(names=("GUEST_PANICKED", "SHUTDOWN", "BLOCK_IO_ERROR"))
        monitor.register_listener(events)
        try:
            async with asyncio.timeout(_MONITOR_LIMIT_S):
                await monitor.connect(ours[MONITOR])
        except (QMPError, TimeoutError) as error:
            raise await broken(process) from error
        self._powered.push_async_callback(_disconnected, monitor)
        self._powered.callback(process.kill)  # first of all, so that no closing waits for it
        return _Running(process, monitor, QemuGuest(agent, data_port, process), events, Merging(monitor, self._disks))

    async def _streams(self, ours: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(sock=ours, limit=REPLY_LIMIT_BYTES)
        self._powered.callback(writer.close)
        return reader, writer

    async def power_off(self) -> None:
        self._cpu_time_before_s = self.cpu_time_s()
        self._running = None
        await self._powered.aclose()
        if self._is_reverted:  # the next guest begins anew, or as in another snapshot
            self._is_reverted = False
            self._disks.close()

    async def pause(self) -> None:
        await self._ask("stop")

    async def resume(self) -> None:
        try:
            await self._on.monitor.execute("cont")
        except QMPError:  # as in the last moments of a snapshot, or where the monitor is broken
            async with self._snapshots.saving:
                await self._ask("cont")

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        return self._snapshots.all()

    def room_for_snapshot(self) -> Room:
        memory_bytes = self._spec.memory_mib * MIB
        return Room(
            state_bytes=migration.most_bytes(memory_bytes) + _DEVICES_BYTES,
            disks_bytes=min(self._disks.used_bytes(), self._disks.virtual_bytes),
        )

    async def take_snapshot(self, standing: Standing, *, most_bytes: int) -> None:
        running = self._on
        try:
            await self._snapshots.take(running.monitor, running.merging, standing, most_bytes)
        except ExecuteError as error:
            raise SnapshotFailed(str(error)) from error
        except (QMPError, TimeoutError) as error:
            raise await broken(running.child) from error

    async def verify_snapshot(self, number: int) -> None:
        await self._snapshots.verify(number)

    async def keep_snapshots(self, numbers: Collection[int]) -> None:
        running = self._running
        try:
            await self._snapshots.keep(numbers, running.merging if running else None)
        except ExecuteError as error:
            log.warning("The layers of the machine's disks can't be merged: %s", error)
        except QMPError as error:
            if running:
                raise await broken(running.child) from error

    async def revert(self, snapshot: Snapshot) -> None:
        await self.power_off()
        self._is_reverted = True
        try:
            await self._load(await self._snapshots.reopen(snapshot))
        except BaseException as error:
            await self.power_off()
            if isinstance(error, MachineExited) and _CANT_USE.search(str(error)):
                raise SnapshotUnusable(f"QEMU can't use it: {error}") from error
            raise

    async def _load(self, saved: Saved) -> None:
        await self._start(waits=True)
        path = self._spec.directory / saved.state_file
        with path.open("rb") as state:
            process = self._on.child
            with self._clock.followed_by(stop=process.stop, go=process.go):
                async with beside(_watch_process(process)), asyncio.TaskGroup() as both:
                    digest = both.create_task(_digest_of_saved(path))
                    await migration.load(self._on.monitor, state.fileno())
            if digest.result() != saved.state_digest:
                raise SnapshotUnusable(f"its file {saved.state_file} is damaged")

    async def _ask(self, command_name: str) -> None:
        running = self._on
        try:
            async with asyncio.timeout(_MONITOR_LIMIT_S):
                await running.monitor.execute(command_name)
        except (QMPError, TimeoutError) as error:
            raise await broken(running.child) from error

    async def watch(self) -> NoReturn:
        running = self._on
        with ungrouped():
            async with asyncio.TaskGroup() as watches:
                watches.create_task(_watch_process(running.child))
                watches.create_task(_watch_guest(running.events))
                watches.create_task(_watch_console(self._console))
                # Beside the boot, which it would delay by 0.05 s.
                if self._image.bundle:
                    watches.create_task(_verified(self._image.bundle))
        raise AssertionError  # the first three of them raise

    def cpu_time_s(self) -> float:
        return self._cpu_time_before_s + (self._running.child.cpu_time_s() if self._running else 0.0)

    def working_set_bytes(self) -> int:
        return self._running.child.working_set_bytes() if self._running else 0


async def _digest_of_saved(state: Path) -> str:
    try:
        return await digest_of(state)
    except OSError as error:
        raise SnapshotUnusable(f"its file {state.name} can't be read: {error.strerror}") from error


async def _verified(bundle: Bundle) -> None:
    """Verify the bundle in a thread, which stops when we are cancelled."""
    stop = threading.Event()
    try:
        await asyncio.to_thread(verify, bundle, stop=stop)
    finally:
        stop.set()


async def _watch_process(process: Child) -> NoReturn:
    raise await exit_error(process)


async def _watch_guest(events: EventListener) -> NoReturn:
    match await events.get():
        case {"event": "GUEST_PANICKED"}:
            raise GuestPanicked("the guest's kernel panicked")
        case {"event": "BLOCK_IO_ERROR", "data": {"operation": "read", "reason": str(reason)}}:
            raise HostDiskFailed(f"the base image or a disk of the machine can't be read on this computer: {reason}")
        case {"event": "BLOCK_IO_ERROR", "data": {"reason": str(reason)}}:
            raise HostDiskFailed(f"the host's disk failed under the guest, which was writing: {reason}")
        case {"data": {"reason": "guest-reset"}}:
            raise GuestPoweredOff("the guest rebooted before the task was done")
    raise GuestPoweredOff("the guest powered off before the task was done")


async def _watch_console(console: ConsoleTail) -> NoReturn:
    await console.halted.wait()
    raise GuestPoweredOff("the guest halted before the task was done")


async def _disconnected(monitor: QMPClient) -> None:
    with suppress(QMPError, OSError, EOFError):
        await monitor.disconnect()
