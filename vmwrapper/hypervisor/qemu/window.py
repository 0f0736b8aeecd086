"""Large files, through a disk that the host and the guest both have; why: docs/adr/005.

One half of it is filled while the other one is emptied. The guest does what lines in the port ask for, each of them the
nonce and then one of these; files go by their number, counted from 1:
    in NUMBER BLOCK_BYTES BLOCKS FIRST_IN_WINDOW FIRST_IN_FILE    copy blocks from the window into the file
    out NUMBER BLOCK_BYTES BLOCKS FIRST_IN_WINDOW FIRST_IN_FILE   copy blocks out of the file
    cut NUMBER BYTES                                              make the file as long as that
    end
The answer to the first two, once it is done, is the nonce. In both directions the host gets the files' contents out of
the guest once more at the end, and compares checksums. What is in the window a guest may change at any time.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import xxhash

from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.inputs import CHUNK_BYTES, Input, contents
from vmwrapper.hypervisor.interface import MIB
from vmwrapper.hypervisor.outputs import Output, Sink, writing
from vmwrapper.hypervisor.qemu.port import Port

WINDOW_SERIAL = "vmwrapper-window"
"""The serial number by which transfer.sh finds it."""
WINDOW_BYTES = 64 * MIB
LARGE_BYTES = 8 * MIB
"""Files from this size on cross through the window; transfer.sh has it too."""

_HALF_BYTES = WINDOW_BYTES // 2
_BLOCK_BYTES = 8 * MIB  # with 1 MiB the guest's ext4 takes three times as long
_END_BLOCK_BYTES = 64 * 1024  # what a file may be too long by, until it is cut
_MARK_BYTES = 16
_EXCERPT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Of a file, as much as fits into half of the window."""

    number: int
    offset: int
    size: int
    block_bytes: int

    def place(self, half: int) -> str:
        """As the guest is told of it."""
        blocks = -(-self.size // self.block_bytes)
        in_window = half * _HALF_BYTES // self.block_bytes
        return f"{self.number} {self.block_bytes} {blocks} {in_window} {self.offset // self.block_bytes}"


class Window:
    """The host's side. One transfer at a time; a thread is never at work on the file once an await has ended."""

    def __init__(self, fd: int, port: Port) -> None:
        self._fd = fd
        self._port = port

    async def put(self, nonce: str, files: Mapping[int, Input]) -> bool:
        """Copy files into the guest, by their numbers, and say whether they arrived whole."""
        sent, arrived = xxhash.xxh64(), xxhash.xxh64()
        parts = _parts({number: file.size for number, file in files.items()})
        with closing(contents(files.values(), sent)) as chunks:
            for index, part in enumerate(parts):
                if index > 1:
                    await self._answer(nonce)
                for start in range(0, part.size, _BLOCK_BYTES):
                    place = index % 2 * _HALF_BYTES + start
                    await to_thread_and_back(self._fill, place, min(_BLOCK_BYTES, part.size - start), chunks)
                await self._ask(f"{nonce} in {part.place(index % 2)}")
        for _ in parts[-2:]:
            await self._answer(nonce)
        for number, file in files.items():
            await self._ask(f"{nonce} cut {number} {file.size}")
        await self._empty(nonce, parts, arrived.update)
        return sent.digest() == arrived.digest()

    async def get(self, nonce: str, files: Mapping[int, Output]) -> bool:
        """Copy files out of the guest, by their numbers, and say whether they arrived whole."""
        arrived, again = xxhash.xxh64(), xxhash.xxh64()
        parts = _parts({number: file.size for number, file in files.items()})
        with closing(Sink(files.values(), arrived)) as sink:
            await to_thread_and_back(sink.open_next)
            await self._empty(nonce, parts, sink.write)
        await self._empty(nonce, parts, again.update)
        return arrived.digest() == again.digest()

    async def _empty(self, nonce: str, parts: Iterable[_Part], take: Callable[[bytes], None]) -> None:
        """Copy parts out of the guest."""
        halves = [(part, index % 2) for index, part in enumerate(parts)]
        for asked, ahead in zip([None, *halves], [*halves, None], strict=True):
            if ahead:
                part, half = ahead
                await to_thread_and_back(self._spoil, half * _HALF_BYTES)
                await self._ask(f"{nonce} out {part.place(half)}")
            if asked:
                part, half = asked
                await self._answer(nonce)
                for start in range(0, part.size, _BLOCK_BYTES):
                    place = half * _HALF_BYTES + start
                    await to_thread_and_back(self._take, place, min(_BLOCK_BYTES, part.size - start), take)

    async def _ask(self, line: str) -> None:
        await self._port.write(f"{line}\n".encode())

    async def _answer(self, nonce: str) -> None:
        if (said := await self._port.line()) != nonce:
            raise TransferFailed(f"the guest says {printable(said, limit=_EXCERPT)!r} instead of having copied")

    def _spoil(self, place: int) -> None:
        """Make half of the window differ from all that was there, so that a copy that was not made is noticed."""
        for start in range(place, place + _HALF_BYTES, _BLOCK_BYTES):
            self._write(secrets.token_bytes(_MARK_BYTES), start)

    def _fill(self, place: int, size: int, chunks: Iterator[bytes]) -> None:
        end = place + size
        while place < end:
            chunk = next(chunks)
            self._write(chunk, place)
            place += len(chunk)

    def _write(self, data: bytes, place: int) -> None:
        rest = memoryview(data)
        with writing("the window"):
            while rest:
                written = os.pwrite(self._fd, rest, place)
                place, rest = place + written, rest[written:]

    def _take(self, place: int, size: int, take: Callable[[bytes], None]) -> None:
        for start in range(place, place + size, CHUNK_BYTES):
            take(os.pread(self._fd, min(CHUNK_BYTES, place + size - start), start))


def _parts(sizes: Mapping[int, int]) -> list[_Part]:
    """Of whole large blocks, but for a file's end."""
    parts = []
    for number, size in sizes.items():
        offset = 0
        while (left := size - offset) > 0:
            block_bytes = _BLOCK_BYTES if left >= _BLOCK_BYTES else _END_BLOCK_BYTES
            part_bytes = min(left // _BLOCK_BYTES * _BLOCK_BYTES or left, _HALF_BYTES)
            parts.append(_Part(number=number, offset=offset, size=part_bytes, block_bytes=block_bytes))
            offset += part_bytes
    return parts
