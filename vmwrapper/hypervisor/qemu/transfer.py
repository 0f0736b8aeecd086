"""Files to and from the guest, as one stream over a virtio-serial port.

First the guest says on a line the nonce, since older bytes may be in the port, and its kind of checksum. A stream to
the guest: the nonce on a line; a tar, padded to a whole number of blocks that the guest knows; the checksum of the
files' contents comes back as what transfer.sh prints. A stream from the guest: a line with a letter for each name that
we asked for; for each regular file a line mode:size:time; the files' contents, one after the other; on a line the nonce
and the checksum of all that. So no name, no link and no archive comes from a guest: see docs/adr/004.
"""

import asyncio
import hashlib
import os
import re
import secrets
import stat
import tarfile
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import BinaryIO, Protocol

import xxhash

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_thread_and_back, ungrouped
from vmwrapper.errors import GuestError, HostDiskFailed, JobError, OutputChanged, OutputTooLarge, TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import CommandResult, FileKind

CHUNK_BYTES = 256 * 1024
_BLOCK_BYTES = 64 * 1024  # transfer.sh reads blocks of this size
_STALL_S = 60.0
_MOST_RUBBISH_BYTES = 1 << 32  # what an earlier stream may have left in the port
_EXCERPT = 100
_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)
_FACTS = re.compile(r"([0-9a-f]{1,8}):([0-9]{1,15}):-?[0-9]+")
_KINDS = {
    "f": FileKind.REGULAR,
    "d": FileKind.DIRECTORY,
    "l": FileKind.LINK,
    "s": FileKind.SPECIAL,
    "-": FileKind.MISSING,
}
_CHANGED_STATUS = 4

RunScript = Callable[[Sequence[str], bytes], Awaitable[CommandResult]]
"""Runs `sh` in the guest with these arguments and this script as its standard input, to its end."""


class Checksum(Protocol):
    """What both hashlib and xxhash have."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


_CHECKSUMS: Mapping[str, Callable[[], Checksum]] = {"xxh64": xxhash.xxh64, "sha256": hashlib.sha256}


class DataPort:
    """The host's end of the port. One transfer at a time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, run_script: RunScript, clock: RunningClock
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._run_script = run_script
        self._clock = clock
        self._script = (package_files(__package__) / "transfer.sh").read_bytes()

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        """See `Guest.put`."""
        nonce = secrets.token_hex(16)
        headers = await asyncio.to_thread(_headers, files)
        length = sum(len(header) + _padded(size) for header, size in headers.values()) + len(_END_OF_ARCHIVE)
        blocks = -(-length // _BLOCK_BYTES)
        with _translated("into"):
            async with asyncio.TaskGroup() as both:
                script = both.create_task(
                    self._script_ends_well("receive", nonce, directory, str(blocks), *map(_in_guest, files))
                )
                sent = await self._send(nonce, headers, files, blocks * _BLOCK_BYTES)
                async with self._clock.timeout(_STALL_S):
                    arrived = await script
        if arrived != sent:
            raise TransferFailed("files were damaged on their way into the guest: the checksums differ")

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        """See `Guest.get`."""
        nonce = secrets.token_hex(16)
        with _translated("out of"):
            async with asyncio.TaskGroup() as both:
                script = both.create_task(self._script_ends_well("send", nonce, directory, *map(_in_guest, files)))
                kinds, is_whole = await self._receive(nonce, files, limit_bytes)
                async with self._clock.timeout(_STALL_S):
                    await script  # which may know better why it is not whole
        if not is_whole:
            raise TransferFailed("files were damaged on their way out of the guest: the checksums differ")
        return kinds

    async def _script_ends_well(self, *arguments: str) -> str:
        result = await self._run_script(arguments, self._script)
        if result.status == _CHANGED_STATUS:
            raise OutputChanged("an output changed while it was copied: something in the guest still writes to it")
        if result.status != 0:
            said = printable(result.stderr)
            raise GuestError(f"the guest's end of a transfer failed with status {result.status}: {said}")
        return result.stdout.decode(errors="replace").partition(" ")[0]

    async def _send(
        self, nonce: str, headers: Mapping[str, tuple[bytes, int]], files: Mapping[str, Path], length: int
    ) -> str:
        checksum = await self._greeting(nonce)
        await self._write(f"{nonce}\n".encode())  # only now: what comes before the port is open is lost
        with closing(_archive(headers, files, checksum)) as chunks:
            while chunk := await to_thread_and_back(next, chunks, b""):
                length -= len(chunk)
                await self._write(chunk)
        await self._write(bytes(length))
        return checksum.hexdigest()

    async def _write(self, chunk: bytes) -> None:
        self._writer.write(chunk)
        async with self._clock.timeout(_STALL_S):
            await self._writer.drain()

    async def _receive(
        self, nonce: str, files: Mapping[str, Path], limit_bytes: int
    ) -> tuple[Mapping[str, FileKind], bool]:
        """What each name is, and whether the checksum is right."""
        checksum = await self._greeting(nonce)
        kinds = _kinds(files, await self._announcement(checksum))
        regular = [path for name, path in files.items() if kinds[name] is FileKind.REGULAR]
        announced = [_announced(path, await self._announcement(checksum)) for path in regular]
        size = sum(file.size for file in announced)
        if size > limit_bytes:
            raise OutputTooLarge("the guest's outputs are larger than its disk and memory can be")
        with closing(_Sink(announced, checksum)) as sink:
            await to_thread_and_back(sink.open_next)
            while size > 0:
                async with self._clock.timeout(_STALL_S):
                    chunk = await self._reader.read(min(size, CHUNK_BYTES))
                if not chunk:
                    raise asyncio.IncompleteReadError(b"", size)
                size -= len(chunk)
                await to_thread_and_back(sink.write, chunk)
        digest = (await self._line_with(nonce)).rpartition(" ")[2]
        return kinds, digest == checksum.hexdigest()

    async def _greeting(self, nonce: str) -> Checksum:
        """Skip to the line with the nonce, and start the kind of checksum that it names."""
        kind = (await self._line_with(nonce)).rpartition(" ")[2]
        if kind not in _CHECKSUMS:
            raise TransferFailed(f"the guest has only an unknown checksum: {printable(kind, limit=_EXCERPT)}")
        return _CHECKSUMS[kind]()

    async def _announcement(self, checksum: Checksum) -> str:
        line = await self._line()
        checksum.update(f"{line}\n".encode())
        return line

    async def _line_with(self, nonce: str) -> str:
        skipped_bytes = 0
        while nonce not in (line := await self._line()):
            skipped_bytes += len(line)
            if skipped_bytes > _MOST_RUBBISH_BYTES:
                raise TransferFailed("the guest keeps sending something that it was not asked for")
        return line

    async def _line(self) -> str:
        async with self._clock.timeout(_STALL_S):
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as overrun:
                line = await self._reader.readexactly(overrun.consumed)
        return line.decode(errors="replace").strip()


@contextmanager
def _translated(direction: str) -> Iterator[None]:
    """Foreign errors of a transfer, by what they mean."""
    try:
        with ungrouped():
            yield
    except TimeoutError as error:
        raise TransferFailed(f"no byte went {direction} the guest for {_STALL_S:g} s") from error


def _headers(files: Mapping[str, Path]) -> dict[str, tuple[bytes, int]]:
    """For each name its tar header and its size in bytes."""
    headers = {}
    for name, path in files.items():
        try:
            status = path.stat()
        except OSError as error:
            raise JobError(f"can't read the input {name}: {error.strerror} ({path})") from error
        if not stat.S_ISREG(status.st_mode):
            raise JobError(f"the input {name} is not a file: {path}")
        member = tarfile.TarInfo(_in_guest(name))
        member.size = status.st_size
        member.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        headers[name] = (member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"), status.st_size)
    return headers


def _archive(
    headers: Mapping[str, tuple[bytes, int]], files: Mapping[str, Path], checksum: Checksum
) -> Generator[bytes, None, None]:
    """A tar in chunks, without the zero bytes at its end; the checksum gets the files' contents. Blocks."""
    chunk = bytearray()
    for part in _parts(headers, files, checksum):
        chunk += part
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def _parts(headers: Mapping[str, tuple[bytes, int]], files: Mapping[str, Path], checksum: Checksum) -> Iterator[bytes]:
    for name, (header, size) in headers.items():
        yield header
        left = size
        try:
            with files[name].open("rb") as file:
                while left > 0 and (part := file.read(min(left, CHUNK_BYTES))):
                    left -= len(part)
                    checksum.update(part)
                    yield part
        except OSError as error:
            raise JobError(f"can't read the input {name}: {error.strerror} ({files[name]})") from error
        if left > 0:
            raise TransferFailed(f"the input {name} became shorter while it was copied")
        yield bytes(_padded(size) - size)


@dataclass(frozen=True, slots=True)
class _Announced:
    """A file that will arrive, and where it goes to."""

    path: Path
    size: int
    executable: bool


def _kinds(names: Iterable[str], letters: str) -> dict[str, FileKind]:
    try:
        return {name: _KINDS[letter] for name, letter in zip(names, letters, strict=True)}
    except (KeyError, ValueError) as error:
        said = printable(letters, limit=_EXCERPT)
        raise TransferFailed(f"the guest does not say what each file is: {said!r}") from error


def _announced(path: Path, line: str) -> _Announced:
    facts = _FACTS.fullmatch(line)
    if facts is None:
        raise TransferFailed(f"the guest does not say a file's size: {printable(line, limit=_EXCERPT)!r}")
    return _Announced(path, size=int(facts[2]), executable=bool(int(facts[1], 16) & stat.S_IXUSR))


class _Sink:
    """Makes files, one after the other, out of one stream of bytes. Blocks."""

    def __init__(self, files: Iterable[_Announced], checksum: Checksum) -> None:
        self._files = iter(files)
        self._checksum = checksum
        self._stack = ExitStack()
        self._left = 0

    def close(self) -> None:
        self._stack.close()

    def open_next(self) -> None:
        """Go on to the next file that has bytes to come, once this one has all of its own."""
        while self._left == 0 and (announced := next(self._files, None)):
            with _writing(announced.path):
                self._stack.close()
                self._file = self._stack.enter_context(_create(announced.path, executable=announced.executable))
            self._path, self._left = announced.path, announced.size

    def write(self, chunk: bytes) -> None:
        """Take as many bytes as are announced, or fewer."""
        self._checksum.update(chunk)
        rest = memoryview(chunk)
        while rest:
            part, rest = rest[: self._left], rest[self._left :]
            with _writing(self._path):
                self._file.write(part)
            self._left -= len(part)
            self.open_next()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the host's disk has against a file, as an error of ours."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise HostDiskFailed(f"can't write {path}: {error.strerror}") from error


def _in_guest(name: str) -> str:
    """The name as the guest gets to see it: no command takes it for an option."""
    return f"./{name}"


def _create(path: Path, *, executable: bool) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o755 if executable else 0o644), "wb")


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
