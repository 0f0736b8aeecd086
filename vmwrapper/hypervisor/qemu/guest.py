"""The inside of a QEMU machine."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from vmwrapper.errors import GuestSilent, MachineExited
from vmwrapper.hypervisor.interface import CommandResult, FileKind
from vmwrapper.hypervisor.qemu.agent import Agent
from vmwrapper.hypervisor.qemu.transfer import DataPort
from vmwrapper.process import Child


class QemuGuest:
    """See `Guest`: commands by the guest agent, files by a port of their own."""

    look_s = 1.0

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
            raise await broken(self._process) from error
        except GuestSilent as error:
            if self._process.is_stopped:
                raise MachineExited(f"QEMU was stopped from outside, by a signal SIGSTOP: {error}") from error
            raise


async def broken(process: Child) -> MachineExited:
    """The error for a QEMU that closed a connection or talks nonsense: if it has not ended, it is ended now."""
    process.kill()
    return await exit_error(process)


async def exit_error(process: Child) -> MachineExited:
    """The error for a QEMU that ends, once it has."""
    status = await process.ended()
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return MachineExited(f"QEMU {how}: {process.last_words or 'it said nothing'}")
