"""Files to and from the guest, as one tar stream over a virtio-serial port.

First the guest says on a line the nonce, since older bytes may be in the port, and its kind of checksum. A stream to
the guest: the nonce on a line; the tar, padded to a whole number of blocks that the guest knows; the checksum of the
files' contents comes back as what transfer.sh prints. A stream from the guest: the tar, zero bytes, nonce and checksum
on a line. Nothing that comes from a guest is unpacked: of each header only type, name, size and executable bit are
used, and only for names that we asked for.
"""

import asyncio
import hashlib
import os
import secrets
import stat
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files as package_files
from pathlib import Path
from typing import BinaryIO, Protocol

import xxhash

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import ungrouped
from vmwrapper.errors import HostDiskFailed, JobError, OutputTooLarge, TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import CommandResult

CHUNK_BYTES = 256 * 1024
_BLOCK_BYTES = 64 * 1024  # transfer.sh reads blocks of this size
_STALL_S = 60.0
_LONGEST_NAME_BYTES = 64 * 1024
_MOST_RUBBISH_BYTES = 1 << 32  # what an earlier stream may have left in the port
_EXCERPT = 100
_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)

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

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> frozenset[str]:
        """See `Guest.get`."""
        nonce = secrets.token_hex(16)
        with _translated("out of"):
            async with asyncio.TaskGroup() as both:
                script = both.create_task(self._script_ends_well("send", nonce, directory, *map(_in_guest, files)))
                arrived = await self._receive(nonce, files, limit_bytes)
                async with self._clock.timeout(_STALL_S):
                    await script
        return arrived

    async def _script_ends_well(self, *arguments: str) -> str:
        result = await self._run_script(arguments, self._script)
        if result.status != 0:
            said = printable(result.stderr)
            raise TransferFailed(f"the guest's end of a transfer failed with status {result.status}: {said}")
        return result.stdout.decode(errors="replace").partition(" ")[0]

    async def _send(
        self, nonce: str, headers: Mapping[str, tuple[bytes, int]], files: Mapping[str, Path], length: int
    ) -> str:
        checksum = await self._greeting(nonce)
        await self._write(f"{nonce}\n".encode())  # only now: what comes before the port is open is lost
        async for chunk in _stream(headers, files, checksum):
            length -= len(chunk)
            await self._write(chunk)
        await self._write(bytes(length))
        return checksum.hexdigest()

    async def _write(self, chunk: bytes) -> None:
        self._writer.write(chunk)
        async with self._clock.timeout(_STALL_S):
            await self._writer.drain()

    async def _receive(self, nonce: str, files: Mapping[str, Path], limit_bytes: int) -> frozenset[str]:
        checksum = await self._greeting(nonce)
        expected = {_in_guest(name): path for name, path in files.items()}
        arrived: set[str] = set()
        async for member in self._members():
            path = expected.pop(member.name, None)
            if path is None or not member.isreg():
                said = printable(member.name, limit=_EXCERPT)
                raise TransferFailed(f"the guest sent something that it was not asked for: {said}")
            limit_bytes -= member.size
            if limit_bytes < 0:
                raise OutputTooLarge("the guest's outputs are larger than its disk and memory can be")
            await self._receive_file(path, member, checksum)
            arrived.add(member.name.removeprefix("./"))
        if await self._trailer() != f"{nonce} {checksum.hexdigest()}":
            raise TransferFailed("files were damaged on their way out of the guest: the checksums differ")
        return frozenset(arrived)

    async def _members(self) -> AsyncIterator[tarfile.TarInfo]:
        """Each header of the stream; the caller reads the file behind it. Ends with the archive."""
        long_name: str | None = None
        while any(block := await self._read(tarfile.BLOCKSIZE)):
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if member.size < 0:
                raise TransferFailed("the guest's stream of files is damaged: a file of negative size")
            if member.type == tarfile.GNUTYPE_LONGNAME and long_name is None and member.size <= _LONGEST_NAME_BYTES:
                name = await self._read(_padded(member.size))
                long_name = os.fsdecode(name[: member.size].rstrip(b"\0"))
                continue
            if long_name is not None:
                member.name, long_name = long_name, None
            yield member

    async def _receive_file(self, path: Path, member: tarfile.TarInfo, checksum: Checksum) -> None:
        with (
            _writing(path),
            await asyncio.to_thread(_create, path, executable=bool(member.mode & stat.S_IXUSR)) as file,
        ):
            left = member.size
            while left > 0:
                async with self._clock.timeout(_STALL_S):
                    chunk = await self._reader.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise asyncio.IncompleteReadError(b"", left)
                checksum.update(chunk)
                left -= len(chunk)
                await asyncio.to_thread(file.write, chunk)
        await self._read(_padded(member.size) - member.size)

    async def _read(self, size: int) -> bytes:
        async with self._clock.timeout(_STALL_S):
            return await self._reader.readexactly(size)

    async def _greeting(self, nonce: str) -> Checksum:
        """Skip to the line with the nonce, and start the kind of checksum that it names."""
        skipped_bytes = 0
        while nonce not in (line := await self._line()):
            skipped_bytes += len(line)
            if skipped_bytes > _MOST_RUBBISH_BYTES:
                raise TransferFailed("the guest keeps sending something that it was not asked for")
        kind = line.rpartition(" ")[2]
        if kind not in _CHECKSUMS:
            raise TransferFailed(f"the guest has only an unknown checksum: {printable(kind, limit=_EXCERPT)}")
        return _CHECKSUMS[kind]()

    async def _trailer(self) -> str:
        """The line behind the zero bytes that follow the archive."""
        async with self._clock.timeout(_STALL_S):
            padded = await self._reader.readuntil(b"\n")
        return padded.lstrip(b"\0").decode(errors="replace").strip()

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
    except (tarfile.HeaderError, asyncio.LimitOverrunError) as error:
        raise TransferFailed(f"the guest's stream of files is damaged: {error}") from error


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


async def _stream(
    headers: Mapping[str, tuple[bytes, int]], files: Mapping[str, Path], checksum: Checksum
) -> AsyncIterator[bytes]:
    """The tar archive, in chunks, without the zero bytes at its end; the checksum gets the files' contents."""
    for name, (header, size) in headers.items():
        yield header
        try:
            with await asyncio.to_thread(files[name].open, "rb") as file:
                left = size
                while left > 0 and (chunk := await asyncio.to_thread(file.read, min(left, CHUNK_BYTES))):
                    left -= len(chunk)
                    checksum.update(chunk)
                    yield chunk
        except OSError as error:
            raise JobError(f"can't read the input {name}: {error.strerror} ({files[name]})") from error
        if left > 0:
            raise TransferFailed(f"the input {name} became shorter while it was copied")
        yield bytes(_padded(size) - size)


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
