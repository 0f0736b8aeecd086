"""The inside of a VirtualBox machine, by requests to the agent there: each has guest.sh do one thing."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from threading import Event
from typing import BinaryIO

from vmwrapper.concurrency import beside, to_thread_and_soon_back
from vmwrapper.errors import GuestSilent, OutputChanged, OutputTooLarge, TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.checksum import AllChecksums, Checksum
from vmwrapper.hypervisor.guest_script import Said, said
from vmwrapper.hypervisor.inputs import Input, archive, in_guest, inputs
from vmwrapper.hypervisor.interface import CommandResult, FileKind
from vmwrapper.hypervisor.outputs import Sink, kinds, output
from vmwrapper.hypervisor.virtualbox.guestcontrol import GuestControl
from vmwrapper.hypervisor.virtualbox.requests import SLOWEST_BYTES_PER_S, Requests

_LOOK_LIMIT_S = 60.0
_TRANSFER_LIMIT_S = 300.0
_MOST_ANSWER_BYTES = 2 << 20
_LONGEST_LINE_BYTES = 1 << 16
_CHUNK_BYTES = 256 * 1024
_END_OF_ARCHIVE = bytes(1024)


class VirtualBoxGuest:
    """See `Guest`. No request depends on an earlier one: whatever happens in between, the next one works."""

    look_s = 10.0

    def __init__(self, control: GuestControl | None, requests: Requests) -> None:
        """`control` is None where nobody may log in: then the guest's image has to start the agent."""
        self._control = control
        self._requests = requests
        self._has_agent = False
        """It has answered since the machine was started."""
        self._is_reverted = False

    def begin(self) -> None:
        """To be called once the machine's folder is there. Blocks."""
        self._requests.begin()

    def booted(self) -> None:
        """To be told when the machine is powered on."""
        self._is_reverted, self._has_agent, self._requests.machine_runs = False, False, True

    def reverted(self) -> None:
        """To be told when it goes on from a snapshot, whose agent it has."""
        self._is_reverted, self._has_agent, self._requests.machine_runs = True, False, True

    def ended(self) -> None:
        """To be told when it is off."""
        self._requests.machine_runs = False

    @asynccontextmanager
    async def nothing_asked(self, *, limit_s: float) -> AsyncIterator[None]:
        """To be entered for a snapshot of a guest that runs. Raises SnapshotFailed after `limit_s`."""
        if not self._has_agent:
            yield
            return
        async with self._requests.nothing_asked(limit_s=limit_s):
            yield

    def check(self) -> None:
        """To be called now and then. Raises GuestError where the guest misuses its road to the host's disk."""
        self._requests.check()

    async def ready(self, *, limit_s: float) -> None:
        try:
            if self._control and not self._is_reverted and not self._has_agent:
                # An agent that the image has started answers earlier than anybody could log in.
                async with beside(self._control.start_agent(limit_s=limit_s)):
                    await self._asked("hello", limit_s=limit_s + _LOOK_LIMIT_S)
            else:
                await self._asked("hello", limit_s=limit_s)
        except GuestSilent as error:
            hint = "" if self._control else "; has the job a <password>, or does the image start our agent?"
            raise GuestSilent(f"the guest did not become ready: {error}{hint}") from error
        self._has_agent = True

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit_s: float) -> CommandResult:
        return (await self._asked("run", *argv, body=[stdin], limit_s=limit_s)).result(argv[0])

    async def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        answer = await self._asked("read", str(limit_bytes), path, limit_s=_LOOK_LIMIT_S)
        return answer.content(path, limit_bytes=limit_bytes)

    async def tail(self, path: str, *, limit_bytes: int) -> bytes | None:
        answer = await self._asked("tail", str(limit_bytes), path, limit_s=_LOOK_LIMIT_S)
        return answer.found[-limit_bytes:] if answer.status == "0" else None

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        if not files:
            return
        ours = await asyncio.to_thread(inputs, files)
        checksum = AllChecksums()
        names = [in_guest(file.name) for file in ours]
        body = _packed(ours, checksum)
        answer = await self._asked("receive", *names, directory=directory, body=body, limit_s=_limit_s(ours))
        if _text(answer.must().found).partition("\n")[0] not in checksum.lines():
            raise TransferFailed("files were damaged on their way into the guest: the checksums differ")

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        if not files:
            return {}
        words = (directory, "look", str(limit_bytes), *map(in_guest, files))
        limit_s = _TRANSFER_LIMIT_S
        async with self._requests.answered(words, "the guest did not send its outputs", limit_s=limit_s) as (
            nonce,
            file,
        ):
            return await to_thread_and_soon_back(_received, nonce, file, files, limit_bytes)

    async def _asked(
        self, verb: str, *arguments: str, directory: str = ".", body: Iterable[bytes] = (), limit_s: float
    ) -> Said:
        what = f"the command {arguments[0]!r} in the guest did not end" if verb == "run" else "the guest did not answer"
        words = (directory, verb, *arguments)
        async with self._requests.answered(words, what, body=body, limit_s=limit_s) as (nonce, file):
            return _said(nonce, await asyncio.to_thread(file.read, _MOST_ANSWER_BYTES))


def _received(
    nonce: str, file: BinaryIO, files: Mapping[str, Path], limit_bytes: int, enough: Event
) -> Mapping[str, FileKind]:
    """Write the files that are in an answer. Blocks."""
    found = kinds(files, _text(_line(nonce, file)))
    regular = [name for name in files if found[name] is FileKind.REGULAR]
    facts = [_text(_line(nonce, file)) for _ in regular]
    announced = [output(files[name], line) for name, line in zip(regular, facts, strict=True)]
    if (left := sum(one.size for one in announced)) > limit_bytes:
        raise OutputTooLarge("the guest's outputs are larger than its disk and memory can be")
    checksum = AllChecksums()
    with closing(Sink(announced, checksum)) as sink:
        sink.open_next()
        while left and not enough.is_set() and (chunk := file.read(min(left, _CHUNK_BYTES))):
            sink.write(chunk)
            left -= len(chunk)
    try:
        end = _said(nonce, file.read(_MOST_ANSWER_BYTES)).must()
    except TransferFailed as error:
        raise OutputChanged(
            "an output changed its size while it was copied: something in the guest still writes to it"
        ) from error
    line, *facts_now = _text(end.wrong).split("\n")
    if left or end.found or facts_now[: len(facts)] != facts:
        raise OutputChanged("an output changed while it was copied: something in the guest still writes to it")
    if line not in checksum.lines():
        raise TransferFailed("files were damaged on their way out of the guest: the checksums differ")
    return found


def _line(nonce: str, file: BinaryIO) -> bytes:
    """The next line of an answer. Raises GuestError where the guest says what was wrong instead."""
    line = file.readline(_LONGEST_LINE_BYTES)
    if line == b"\n" or not line.endswith(b"\n"):
        _said(nonce, line + file.read(_MOST_ANSWER_BYTES)).must()
        raise TransferFailed("the guest does not say what its files are")
    return line[:-1]


def _packed(files: Sequence[Input], checksum: Checksum) -> Iterable[bytes]:
    """A whole tar."""
    yield from archive(files, checksum)
    yield _END_OF_ARCHIVE


def _said(nonce: str, answer: bytes) -> Said:
    if (found := said(answer, nonce)) is None:
        raise TransferFailed(f"the guest's answer has no end: {printable(answer[-400:]) or '(nothing)'}")
    return found


def _text(said: bytes) -> str:
    return said.decode(errors="replace").strip("\n")


def _limit_s(files: Sequence[Input]) -> float:
    return _TRANSFER_LIMIT_S + sum(file.size for file in files) / SLOWEST_BYTES_PER_S
