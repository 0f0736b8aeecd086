"""Files to and from the guest, as one stream over a virtio-serial port.

First the guest says on a line the nonce, since older bytes may be in the port, and its kind of checksum. A stream to
the guest: on a line the nonce and a number of blocks; a tar, padded to that many blocks; the checksum of the files'
contents comes back as what transfer.sh prints. A stream from the guest: a line with a letter for each name that we
asked for; for each regular file a line mode:size:time; the files' contents, one after the other; on a line the nonce
and the checksum of all that. So no name, no link and no archive comes from a guest: see docs/adr/004.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.resources import files as package_files
from pathlib import Path

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_thread_and_back, ungrouped
from vmwrapper.errors import GuestError, OutputChanged, OutputTooLarge, TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import CommandResult, FileKind
from vmwrapper.hypervisor.qemu.checksum import CHECKSUMS, Checksum
from vmwrapper.hypervisor.qemu.inputs import CHUNK_BYTES, Input, archive, archive_bytes, in_guest, inputs
from vmwrapper.hypervisor.qemu.outputs import Sink, kinds, output
from vmwrapper.hypervisor.qemu.port import STALL_S, Port

_BLOCK_BYTES = 64 * 1024  # transfer.sh reads blocks of this size
_EXCERPT = 100
_CHANGED_STATUS = 4

RunScript = Callable[[Sequence[str], bytes], Awaitable[CommandResult]]
"""Runs `sh` in the guest with these arguments and this script as its standard input, to its end."""


class DataPort:
    """The host's side of transfers, one at a time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, run_script: RunScript, clock: RunningClock
    ) -> None:
        self._port = Port(reader, writer, clock)
        self._run_script = run_script
        self._clock = clock
        self._script = (package_files(__package__) / "transfer.sh").read_bytes()

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        """See `Guest.put`."""
        nonce = secrets.token_hex(16)
        ours = await asyncio.to_thread(inputs, files)
        size = sum(file.size for file in ours)
        with _translated("into"):
            async with asyncio.TaskGroup() as both:
                script = both.create_task(
                    self._script_ends_well("receive", nonce, directory, str(size), *map(in_guest, files))
                )
                sent = await self._send(nonce, ours)
                async with self._clock.timeout(STALL_S):
                    arrived = await script
        if arrived != sent:
            raise TransferFailed("files were damaged on their way into the guest: the checksums differ")

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        """See `Guest.get`."""
        nonce = secrets.token_hex(16)
        with _translated("out of"):
            async with asyncio.TaskGroup() as both:
                script = both.create_task(self._script_ends_well("send", nonce, directory, *map(in_guest, files)))
                found, is_whole = await self._receive(nonce, files, limit_bytes)
                async with self._clock.timeout(STALL_S):
                    await script  # which may know better why it is not whole
        if not is_whole:
            raise TransferFailed("files were damaged on their way out of the guest: the checksums differ")
        return found

    async def _script_ends_well(self, *arguments: str) -> str:
        result = await self._run_script(arguments, self._script)
        if result.status == _CHANGED_STATUS:
            raise OutputChanged("an output changed while it was copied: something in the guest still writes to it")
        if result.status != 0:
            said = printable(result.stderr)
            raise GuestError(f"the guest's end of a transfer failed with status {result.status}: {said}")
        return result.stdout.decode(errors="replace").partition(" ")[0]

    async def _send(self, nonce: str, files: Sequence[Input]) -> str:
        """The checksum of all that was sent."""
        checksum = await self._greeting(nonce)
        blocks = -(-archive_bytes(files) // _BLOCK_BYTES)
        left = blocks * _BLOCK_BYTES
        await self._port.write(f"{nonce} {blocks}\n".encode())  # only now: what comes before the port is open is lost
        with closing(archive(files, checksum)) as chunks:
            while chunk := await to_thread_and_back(next, chunks, b""):
                left -= len(chunk)
                await self._port.write(chunk)
        await self._port.write(bytes(left))
        return checksum.hexdigest()

    async def _receive(
        self, nonce: str, files: Mapping[str, Path], limit_bytes: int
    ) -> tuple[Mapping[str, FileKind], bool]:
        """What each name is, and whether the checksum is right."""
        checksum = await self._greeting(nonce)
        found = kinds(files, await self._announcement(checksum))
        regular = [path for name, path in files.items() if found[name] is FileKind.REGULAR]
        announced = [output(path, await self._announcement(checksum)) for path in regular]
        size = sum(file.size for file in announced)
        if size > limit_bytes:
            raise OutputTooLarge("the guest's outputs are larger than its disk and memory can be")
        with closing(Sink(announced, checksum)) as sink:
            await to_thread_and_back(sink.open_next)
            while size > 0:
                chunk = await self._port.read(min(size, CHUNK_BYTES))
                size -= len(chunk)
                await to_thread_and_back(sink.write, chunk)
        digest = (await self._port.line_with(nonce)).rpartition(" ")[2]
        return found, digest == checksum.hexdigest()

    async def _greeting(self, nonce: str) -> Checksum:
        """Skip to the line with the nonce, and start the kind of checksum that it names."""
        kind = (await self._port.line_with(nonce)).rpartition(" ")[2]
        if kind not in CHECKSUMS:
            raise TransferFailed(f"the guest has only an unknown checksum: {printable(kind, limit=_EXCERPT)}")
        return CHECKSUMS[kind]()

    async def _announcement(self, checksum: Checksum) -> str:
        line = await self._port.line()
        checksum.update(f"{line}\n".encode())
        return line


@contextmanager
def _translated(direction: str) -> Iterator[None]:
    """Foreign errors of a transfer, by what they mean."""
    try:
        with ungrouped():
            yield
    except TimeoutError as error:
        raise TransferFailed(f"no byte went {direction} the guest for {STALL_S:g} s") from error
