"""Files to and from the guest, as one stream over a virtio-serial port; but the large ones through the window.

First the guest says on a line the nonce, since older bytes may be in the port, its kind of checksum, and "window" where
it has one and a large file is asked for. In the stream large files are then empty, and follow after it. A stream to
the guest: on a line the nonce and a number of blocks; a tar, padded to that many blocks; the checksum of the files'
contents comes back as what transfer.sh prints. A stream from the guest: a line with a letter for each name that we
asked for; for each regular file a line mode:size:time; the files' contents, one after the other; on a line the nonce
and the checksum of all that. So no name, no link and no archive comes from a guest: see docs/adr/004.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import TypeVar

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_thread_and_back, ungrouped
from vmwrapper.errors import GuestError, OutputChanged, OutputTooLarge, TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.checksum import CHECKSUMS, Checksum
from vmwrapper.hypervisor.inputs import CHUNK_BYTES, Input, archive, archive_bytes, in_guest, inputs
from vmwrapper.hypervisor.interface import CommandResult, FileKind
from vmwrapper.hypervisor.outputs import Output, Sink, kinds, output
from vmwrapper.hypervisor.qemu.port import STALL_S, Port
from vmwrapper.hypervisor.qemu.window import LARGE_BYTES, Window

_BLOCK_BYTES = 64 * 1024  # transfer.sh reads blocks of this size
_EXCERPT = 100
_CHANGED_STATUS = 4
_SLOWEST_CHECK_BYTES_PER_S = 2e6

RunScript = Callable[[Sequence[str], bytes, asyncio.Event], Awaitable[CommandResult]]
"""See `Agent.run_script`."""
AnyFile = TypeVar("AnyFile", Input, Output)


@dataclass(frozen=True, slots=True)
class _Greeting:
    """What the guest has."""

    checksum: Checksum
    window: bool

    def large(self, files: Sequence[AnyFile]) -> dict[int, AnyFile]:
        """Those that cross through the window, by their number from 1."""
        return {number: file for number, file in enumerate(files, 1) if self.window and file.size >= LARGE_BYTES}


class DataPort:
    """The host's side of transfers, one at a time."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        run_script: RunScript,
        clock: RunningClock,
        window_fd: int,
    ) -> None:
        self._port = Port(reader, writer, clock)
        self._window = Window(window_fd, self._port)
        self._run_script = run_script
        self._clock = clock
        self._script = (package_files(__package__) / "transfer.sh").read_bytes()

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        """See `Guest.put`."""
        nonce, ending = secrets.token_hex(16), asyncio.Event()
        ours = await asyncio.to_thread(inputs, files)
        large = sum(file.size for file in ours if file.size >= LARGE_BYTES)
        small = sum(file.size for file in ours) - large
        with _translated("into"):
            async with asyncio.TaskGroup() as both:
                arguments = (nonce, directory, str(small), str(large), *map(in_guest, files))
                script = both.create_task(self._script_ends_well("receive", *arguments, ending=ending))
                sent, is_whole = await self._send(nonce, ours)
                ending.set()
                async with self._clock.timeout(_checked_s(ours)):
                    arrived = await script
        if arrived != sent or not is_whole:
            raise TransferFailed("files were damaged on their way into the guest: the checksums differ")

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        """See `Guest.get`."""
        nonce, ending = secrets.token_hex(16), asyncio.Event()
        with _translated("out of"):
            async with asyncio.TaskGroup() as both:
                arguments = (nonce, directory, *map(in_guest, files))
                script = both.create_task(self._script_ends_well("send", *arguments, ending=ending))
                found, is_whole = await self._receive(nonce, files, limit_bytes)
                ending.set()
                async with self._clock.timeout(STALL_S):
                    await script  # which may know better why it is not whole
        if not is_whole:
            raise TransferFailed("files were damaged on their way out of the guest: the checksums differ")
        return found

    async def _script_ends_well(self, *arguments: str, ending: asyncio.Event) -> str:
        result = await self._run_script(arguments, self._script, ending)
        if result.status == _CHANGED_STATUS:
            raise OutputChanged("an output changed while it was copied: something in the guest still writes to it")
        if result.status != 0:
            said = printable(result.stderr)
            raise GuestError(f"the guest's end of a transfer failed with status {result.status}: {said}")
        return result.stdout.decode(errors="replace").partition(" ")[0]

    async def _send(self, nonce: str, files: Sequence[Input]) -> tuple[str, bool]:
        """The checksum of the stream's files, and whether the large ones arrived whole."""
        async with self._greeting(nonce) as greeting:
            large = greeting.large(files)
            streamed = [replace(file, size=0) if number in large else file for number, file in enumerate(files, 1)]
            blocks = -(-archive_bytes(streamed) // _BLOCK_BYTES)
            left = blocks * _BLOCK_BYTES
            # Only now: what comes before the port is open is lost.
            await self._port.write(f"{nonce} {blocks}\n".encode())
            with closing(archive(streamed, greeting.checksum)) as chunks:
                while chunk := await to_thread_and_back(next, chunks, b""):
                    left -= len(chunk)
                    await self._port.write(chunk)
            await self._port.write(bytes(left))
            return greeting.checksum.hexdigest(), await self._window.put(nonce, large)

    async def _receive(
        self, nonce: str, files: Mapping[str, Path], limit_bytes: int
    ) -> tuple[Mapping[str, FileKind], bool]:
        """What each name is, and whether the checksums are right."""
        async with self._greeting(nonce) as greeting:
            checksum = greeting.checksum
            found = kinds(files, await self._announcement(checksum))
            regular = [path for name, path in files.items() if found[name] is FileKind.REGULAR]
            announced = [output(path, await self._announcement(checksum)) for path in regular]
            if sum(file.size for file in announced) > limit_bytes:
                raise OutputTooLarge("the guest's outputs are larger than its disk and memory can be")
            large = greeting.large(announced)
            streamed = [file for number, file in enumerate(announced, 1) if number not in large]
            await self._receive_stream(streamed, checksum)
            digest = await self._port.after(nonce, limit_s=_checked_s(streamed))
            return found, await self._window.get(nonce, large) and digest == checksum.hexdigest()

    async def _receive_stream(self, files: Sequence[Output], checksum: Checksum) -> None:
        left = sum(file.size for file in files)
        with closing(Sink(files, checksum)) as sink:
            await to_thread_and_back(sink.open_next)
            while left > 0:
                chunk = await self._port.read(min(left, CHUNK_BYTES))
                left -= len(chunk)
                await to_thread_and_back(sink.write, chunk)

    @asynccontextmanager
    async def _greeting(self, nonce: str) -> AsyncIterator[_Greeting]:
        """Skip to the line with the nonce. The guest's side of a window is let go, whatever happens."""
        kind, _, window = (await self._port.after(nonce)).partition(" ")
        if kind not in CHECKSUMS:
            raise TransferFailed(f"the guest has only an unknown checksum: {printable(kind, limit=_EXCERPT)}")
        try:
            yield _Greeting(CHECKSUMS[kind](), window == "window")
        finally:
            if window:
                self._port.say(f"{nonce} end")

    async def _announcement(self, checksum: Checksum) -> str:
        line = await self._port.line()
        checksum.update(f"{line}\n".encode())
        return line


def _checked_s(files: Sequence[AnyFile]) -> float:
    """How long the guest may take to read the files once more."""
    return STALL_S + sum(file.size for file in files) / _SLOWEST_CHECK_BYTES_PER_S


@contextmanager
def _translated(direction: str) -> Iterator[None]:
    """Foreign errors of a transfer, by what they mean."""
    try:
        with ungrouped():
            yield
    except TimeoutError as error:
        raise TransferFailed(f"no byte went {direction} the guest for {STALL_S:g} s") from error
