"""One QEMU process, its monitor and its ports."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qemu.qmp import EventListener, QMPClient, QMPError

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import ungrouped
from vmwrapper.errors import GuestPanicked, GuestPoweredOff, GuestSilent, HostDiskFailed, MachineExited
from vmwrapper.guest.bundle import Bundle, verify
from vmwrapper.hypervisor.interface import CommandResult, FileKind, MachineSpec
from vmwrapper.hypervisor.qemu.agent import REPLY_LIMIT_BYTES, Agent
from vmwrapper.hypervisor.qemu.base_image import BaseImage
from vmwrapper.hypervisor.qemu.command import AGENT_PORT, CONSOLE, DATA_PORT, MONITOR, SOCKETS, Qemu, command
from vmwrapper.hypervisor.qemu.console import ConsoleTail
from vmwrapper.hypervisor.qemu.files import MachineFiles
from vmwrapper.hypervisor.qemu.transfer import DataPort
from vmwrapper.process import Child, child, command_line

log = logging.getLogger(__name__)

_MONITOR_LIMIT_S = 10.0


class QemuGuest:
    """See `Guest`: commands by the guest agent, files by a port of their own."""

    def __init__(self, agent: Agent, data_port: DataPort, process: Child) -> None:
        """`process` is asked why, when it closed a connection."""
        self._agent = agent
        self._data_port = data_port
        self._process = process

    async def ready(self, *, limit_s: float) -> None:
        async with self._connected():
            await self._agent.ready(limit_s=limit_s)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit_s: float) -> CommandResult:
        async with self._connected():
            return await self._agent.run(argv, stdin=stdin, limit_s=limit_s)

    async def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        async with self._connected():
            return await self._agent.read(path, limit_bytes)

    async def tail(self, path: str, *, limit_bytes: int) -> bytes | None:
        async with self._connected():
            return await self._agent.tail(path, limit_bytes)

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        async with self._connected():
            await self._data_port.put(files, directory)

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        async with self._connected():
            return await self._data_port.get(directory, files, limit_bytes=limit_bytes)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        try:
            yield
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise await _broken(self._process) from error
        except GuestSilent as error:
            if self._process.is_stopped:
                raise MachineExited(f"QEMU was stopped from outside, by a signal SIGSTOP: {error}") from error
            raise


@dataclass(frozen=True, slots=True)
class _Running:
    """What there is of a machine while it is powered on."""

    child: Child
    monitor: QMPClient
    guest: QemuGuest
    events: EventListener


class QemuMachine:
    """See `Machine`."""

    def __init__(
        self, qemu: Qemu, spec: MachineSpec, *, image: BaseImage, files: MachineFiles, clock: RunningClock
    ) -> None:
        self._qemu = qemu
        self._spec = spec
        self._image = image
        self._files = files
        self._clock = clock
        self._console = ConsoleTail()
        self._cpu_time_before_s = 0.0
        self._powered = AsyncExitStack()
        self._running: _Running | None = None

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
        if self._running is not None:
            return
        self._console.halted.clear()
        ours: dict[str, socket.socket] = {}
        inherited: dict[str, int] = {}
        with ExitStack() as theirs:
            for name in SOCKETS:
                our_end, their_end = socket.socketpair()
                ours[name] = self._powered.enter_context(our_end)
                inherited[name] = theirs.enter_context(their_end).fileno()
            process = await self._start(inherited)
        self._running = await self._connect(process, ours)

    async def _start(self, sockets: Mapping[str, int]) -> Child:
        argv = command(self._qemu, self._spec, self._image, self._files, sockets)
        log.debug("%s", command_line(argv))
        fds = [*sockets.values(), *self._files.descriptors()]
        return await self._powered.enter_async_context(child(argv, pass_fds=fds, niceness=self._spec.niceness))

    async def _connect(self, process: Child, ours: Mapping[str, socket.socket]) -> _Running:
        loop = asyncio.get_running_loop()
        console, _ = await loop.create_connection(lambda: self._console, sock=ours[CONSOLE])
        self._powered.callback(console.close)
        agent = Agent(*await self._streams(ours[AGENT_PORT]), self._clock)
        data_port = DataPort(
            *await self._streams(ours[DATA_PORT]), agent.run_script, self._clock, self._files.window.fileno()
        )
        monitor = QMPClient()
        events = EventListener(names=("GUEST_PANICKED", "SHUTDOWN", "BLOCK_IO_ERROR"))
        monitor.register_listener(events)
        try:
            async with asyncio.timeout(_MONITOR_LIMIT_S):
                await monitor.connect(ours[MONITOR])
        except (QMPError, TimeoutError) as error:
            raise await _broken(process) from error
        self._powered.push_async_callback(_disconnected, monitor)
        self._powered.callback(process.kill)  # first of all, so that no closing waits for it
        return _Running(process, monitor, QemuGuest(agent, data_port, process), events)

    async def _streams(self, ours: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(sock=ours, limit=REPLY_LIMIT_BYTES)
        self._powered.callback(writer.close)
        return reader, writer

    async def power_off(self) -> None:
        self._cpu_time_before_s = self.cpu_time_s()
        self._running = None
        await self._powered.aclose()

    async def pause(self) -> None:
        await self._ask("stop")

    async def resume(self) -> None:
        await self._ask("cont")

    async def _ask(self, command_name: str) -> None:
        running = self._on
        try:
            async with asyncio.timeout(_MONITOR_LIMIT_S):
                await running.monitor.execute(command_name)
        except (QMPError, TimeoutError) as error:
            raise await _broken(running.child) from error

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


async def _verified(bundle: Bundle) -> None:
    """Verify the bundle in a thread, which stops when we are cancelled."""
    stop = threading.Event()
    try:
        await asyncio.to_thread(verify, bundle, stop=stop)
    finally:
        stop.set()


async def _watch_process(process: Child) -> NoReturn:
    raise await _exit_error(process)


async def _broken(process: Child) -> MachineExited:
    """The error for a QEMU that closed a connection or talks nonsense: if it has not ended, it is ended now."""
    process.kill()
    return await _exit_error(process)


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


async def _exit_error(process: Child) -> MachineExited:
    status = await process.ended()
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return MachineExited(f"QEMU {how}: {process.last_words or 'it said nothing'}")


async def _disconnected(monitor: QMPClient) -> None:
    with suppress(QMPError, OSError, EOFError):
        await monitor.disconnect()
