"""The inside of a machine whose hypervisor runs programs there, by calls of a script, called_guest.sh.

Small files cross within such a call; what is larger goes in by the hypervisor's own means, and comes out in parts.
"""

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Protocol

from vmwrapper.concurrency import to_thread_and_back, to_thread_and_soon_back
from vmwrapper.errors import GuestSilent, OutputChanged, OutputTooLarge, TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.checksum import AllChecksums, Checksum
from vmwrapper.hypervisor.guest_script import Said, guest_script, said
from vmwrapper.hypervisor.inputs import Input, archive, contents, in_guest, inputs
from vmwrapper.hypervisor.interface import CommandResult, FileKind
from vmwrapper.hypervisor.outputs import Output, Sink, kinds, output

MOST_BYTES = 8 << 20
"""Of what one call finds."""
_LOOK_LIMIT_S = 60.0
_TRANSFER_LIMIT_S = 300.0
_SLOWEST_BYTES_PER_S = 50_000  # busybox's SHA-256 without hardware virtualization
_LARGE_BYTES = 1 << 20
_BLOCK_BYTES = 64 * 1024
_END_OF_ARCHIVE = bytes(1024)


class CutOff(Exception):
    """The answer has no end."""


class Calls(Protocol):
    """The way into the guest of one machine."""

    quiet: asyncio.Lock
    """To be held while a snapshot is taken: a guest that was in a call then answers none after going back."""

    @property
    def user(self) -> str:
        """Who logs in."""

    async def call(
        self,
        verb: str,
        *arguments: str,
        directory: str | None = None,
        stdin: bytes = b"",
        nonce: str | None = None,
        limit_s: float,
    ) -> Said:
        """Have the script do this. Whatever a verb does, it does once, however often it has to be asked.

        Raises GuestSilent after `limit_s`, GuestError, MachineExited, JobError where the guest lets us not log in.
        """

    async def copy_to(self, file: Path, there: str, *, limit_s: float) -> None:
        """Copy a file of the host to a path of the guest's, of ASCII letters, that `user` may write to.

        Raises as `call`; GuestError where the guest can't take it, as when its disk is full.
        """


def script() -> str:
    """The script, as it is sent."""
    return guest_script(__package__, "called_guest.sh")


def answer(printed: bytes, nonce: str) -> Said:
    """What the script said in all that it printed. Raises CutOff where a part is missing."""
    if (found := said(printed, nonce)) is None:
        raise CutOff(f"the guest's answer was cut off: {printable(printed[-400:]) or '(nothing)'}")
    return found


class CalledGuest:
    """See `Guest`. No call depends on an earlier one: whatever happens in between, the next one works."""

    look_s = 10.0

    def __init__(self, control: Calls) -> None:
        self._control = control
        self.quiet = control.quiet

    async def ready(self, *, limit_s: float) -> None:
        try:
            await self._control.call("check", limit_s=limit_s)
        except GuestSilent as error:
            raise GuestSilent(f"the guest did not become ready: {error}") from error

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit_s: float) -> CommandResult:
        called = await self._control.call("run", str(len(stdin)), *argv, stdin=stdin, limit_s=limit_s)
        return called.result(argv[0])

    async def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        called = await self._control.call("read", str(limit_bytes), path, limit_s=_LOOK_LIMIT_S)
        return called.content(path, limit_bytes=limit_bytes)

    async def tail(self, path: str, *, limit_bytes: int) -> bytes | None:
        called = await self._control.call("tail", str(limit_bytes), path, limit_s=_LOOK_LIMIT_S)
        return called.found[-limit_bytes:] if called.status == "0" else None

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        ours = await asyncio.to_thread(inputs, files)
        small, large = _by_size(ours)
        for batch in small[:-1]:
            await self._received(batch, [], directory)
        await self._received(small[-1], large, directory)

    async def _received(self, small: Sequence[Input], large: Sequence[Input], directory: str) -> None:
        limit_s = _limit_s([*small, *large])
        checksum = AllChecksums()
        packed = await to_thread_and_soon_back(_packed, small, checksum) if small else b""
        nonce = await self._staged(large, directory, limit_s) if large else "none"
        await to_thread_and_soon_back(_read, large, checksum)
        modes = [word for file in large for word in ("755" if file.executable else "644", in_guest(file.name))]
        names = [in_guest(file.name) for file in (*small, *large)]
        words = str(len(packed)), str(len(large)), nonce, *modes, *names
        called = await self._control.call("receive", *words, directory=directory, stdin=packed, limit_s=limit_s)
        if _checksum_of(called.must().found).partition("\n")[0] not in checksum.lines():
            raise TransferFailed("files were damaged on their way into the guest: the checksums differ")

    async def _staged(self, files: Sequence[Input], directory: str, limit_s: float) -> str:
        """Copy them into a folder beside where they belong; its nonce."""
        nonce = secrets.token_hex(16)
        words = (self._control.user,)
        called = await self._control.call("stage", *words, directory=directory, nonce=nonce, limit_s=_LOOK_LIMIT_S)
        called.must()
        for number, file in enumerate(files, 1):
            there = f"/tmp/.vmwrapper-{nonce}/{number}"  # noqa: S108  (the guest's)
            await self._control.copy_to(await asyncio.to_thread(file.path.resolve), there, limit_s=limit_s)
        return nonce

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        names = [in_guest(name) for name in files]
        at_once = str(min(limit_bytes, MOST_BYTES))
        called = await self._control.call("look", at_once, *names, directory=directory, limit_s=_TRANSFER_LIMIT_S)
        letters, _, rest = called.must().found.partition(b"\n")
        found = kinds(files, _text(letters))
        regular = {name: path for name, path in files.items() if found[name] is FileKind.REGULAR}
        *facts, content = rest.split(b"\n", len(regular))
        if len(facts) < len(regular):
            raise TransferFailed("the guest does not say how large each file is")
        announced = [output(path, _text(line)) for path, line in zip(regular.values(), facts, strict=True)]
        total = sum(file.size for file in announced)
        if total > limit_bytes:
            raise OutputTooLarge("the guest's outputs are larger than its disk and memory can be")
        checksum = AllChecksums()
        with closing(Sink(announced, checksum)) as sink:
            await to_thread_and_back(sink.open_next)
            if total <= int(at_once):
                await _written(sink, content, total)
                checked = called.wrong
            else:
                wanted = [(in_guest(name), file) for name, file in zip(regular, announced, strict=True)]
                await self._fetch(wanted, directory, sink)
                words = [name for name, _ in wanted]
                limit_s = _limit_s(announced)
                called = await self._control.call("check", *words, directory=directory, limit_s=limit_s)
                checked = called.must().found
        line, _, facts_now = _checksum_of(checked).partition("\n")
        if facts_now.split() != [_text(fact) for fact in facts]:
            raise OutputChanged("an output changed while it was copied: something in the guest still writes to it")
        if line not in checksum.lines():
            raise TransferFailed("files were damaged on their way out of the guest: the checksums differ")
        return found

    async def _fetch(self, wanted: Sequence[tuple[str, Output]], directory: str, sink: Sink) -> None:
        for parts in _parts(wanted):
            words = [word for name, first, count, _ in parts for word in (name, str(first), str(count))]
            limit_s = _TRANSFER_LIMIT_S
            called = await self._control.call("parts", *words, directory=directory, limit_s=limit_s)
            await _written(sink, called.must().found, sum(size for *_, size in parts))


def _by_size(files: Sequence[Input]) -> tuple[list[list[Input]], list[Input]]:
    """Batches of small files, at least one, each of which one call may carry; and the large files."""
    batches: list[list[Input]] = [[]]
    room = MOST_BYTES
    for file in files:
        if file.size >= _LARGE_BYTES:
            continue
        if file.size > room:
            batches.append([])
            room = MOST_BYTES
        batches[-1].append(file)
        room -= file.size
    return batches, [file for file in files if file.size >= _LARGE_BYTES]


def _packed(files: Sequence[Input], checksum: Checksum, enough: Event) -> bytes:
    """A whole tar, unless that is `enough`."""
    parts = takewhile(lambda _: not enough.is_set(), archive(files, checksum))
    return b"".join(parts) + _END_OF_ARCHIVE


def _read(files: Sequence[Input], checksum: Checksum, enough: Event) -> None:
    for _ in contents(files, checksum):
        if enough.is_set():
            return


def _parts(wanted: Sequence[tuple[str, Output]]) -> Iterator[list[tuple[str, int, int, int]]]:
    """Names, first blocks, numbers of blocks, and bytes, of which each call gets as many as it may print."""
    parts: list[tuple[str, int, int, int]] = []
    room = MOST_BYTES
    for name, file in wanted:
        at = 0
        while at < file.size:
            if room < _BLOCK_BYTES:
                yield parts
                parts, room = [], MOST_BYTES
            size = min(file.size - at, room // _BLOCK_BYTES * _BLOCK_BYTES)
            parts.append((name, at // _BLOCK_BYTES, -(-size // _BLOCK_BYTES), size))
            at += size
            room -= size
    if parts:
        yield parts


async def _written(sink: Sink, content: bytes, size: int) -> None:
    if len(content) != size:
        raise OutputChanged("an output changed its size while it was copied: something in the guest still writes to it")
    await to_thread_and_back(sink.write, content)


def _checksum_of(said: bytes) -> str:
    return _text(said).strip()


def _text(said: bytes) -> str:
    return said.decode(errors="replace")


def _limit_s(files: Sequence[Input] | Sequence[Output]) -> float:
    return _TRANSFER_LIMIT_S + sum(file.size for file in files) / _SLOWEST_BYTES_PER_S
